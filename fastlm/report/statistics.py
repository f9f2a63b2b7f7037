# SPDX-License-Identifier: Apache-2.0
"""How varied texts are: figures of which each is compared with that of human texts of the same length and number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastlm.goals.texts import folded, runs, split_sentences, split_words

if TYPE_CHECKING:
    import numpy.typing as npt

Words: TypeAlias = "list[list[str]]"
"""Of each text."""

SELF_BLEU_TEXTS = 24
"""Of all texts, that are compared with one another, each with each."""

TOP_SENTENCES = 10

_BLOCKS = 8
"""Parts of the human text, one behind the other, whose differences are what human texts differ by."""

_LEAST_SPREAD = 0.02
"""Of a figure's own size: parts of a text that differ by less are alike by chance."""

_LEAST_SHARE = 0.005
"""Of what a figure can be at most, or of a unit if there is no such: differences below that nobody notices."""

_MOST = 8.0
"""A figure counts no more, so that one alone does not decide."""


@dataclass(frozen=True)
class Statistic:
    """A figure of texts.

    Attributes
    ----------
    name : str
    about : str
        What it is, for a reader who does not know.
    wild : int
        1 if wilder texts have more of it, -1 if less.
    most : float
        That it can be; 1 if there is no such.
    of : callable
        Of the texts, and their words in lower case.
    """

    name: str
    about: str
    wild: int
    most: float
    of: Callable[[Sequence[str], Words], float]


def entropy(texts: Sequence[str], words: Words) -> float:
    """Of the words, in bits (Shannon 1951)."""
    counts = np.array(list(Counter(word for text in words for word in text).values()), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _distinct(n: int) -> Callable[[Sequence[str], Words], float]:
    def of(texts: Sequence[str], words: Words) -> float:
        found = [run for text in words for run in runs(text, n)]
        return len(set(found)) / max(1, len(found))

    return of


def self_bleu(texts: Sequence[str], words: Words) -> float:
    """Mean BLEU-4 of texts against the others (Zhu et al. 2018), by sacreBLEU, 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    chosen = [" ".join(text) for text in words[:: -(-len(words) // SELF_BLEU_TEXTS)]]
    bleu = BLEU(tokenize="none", effective_order=True, force=True)
    others = ([*chosen[:n], *chosen[n + 1 :]] for n in range(len(chosen)))
    return float(np.mean([bleu.sentence_score(one, rest).score for one, rest in zip(chosen, others, strict=True)]))


def loops(texts: Sequence[str], words: Words) -> float:
    """Share of runs of four words that stand in the same text before (Welleck et al. 2020: seq-rep-4)."""
    again = total = 0
    for text in words:
        found = runs(text, 4)
        again, total = again + len(found) - len(set(found)), total + len(found)
    return again / max(1, total)


def frequent_sentences(texts: Sequence[str], words: Words) -> float:
    """Share of sentences that are among the most frequent ones."""
    counts = Counter(" ".join(split_words(one)) for text in texts for one in split_sentences(folded(text)))
    return sum(count for _, count in counts.most_common(TOP_SENTENCES)) / max(1, counts.total())


def zipf(texts: Sequence[str], words: Words) -> float:
    """Slope of the words' frequencies over their ranks, both as logarithms, over ranks that are evenly spread (Zipf
    1949)."""
    counts = np.sort(list(Counter(word for text in words for word in text).values()))[::-1]
    if len(counts) < 2:
        return -10.0
    ranks = np.unique(np.geomspace(1, len(counts), 40).astype(int))
    return float(np.polyfit(np.log(ranks), np.log(counts[ranks - 1]), 1)[0])


def _coverage(vocabulary: frozenset[str]) -> Callable[[Sequence[str], Words], float]:
    def of(texts: Sequence[str], words: Words) -> float:
        said = {word for text in words for word in text}
        return len(said & vocabulary) / max(1, len(vocabulary))

    return of


def _rare(vocabulary: frozenset[str]) -> Callable[[Sequence[str], Words], float]:
    def of(texts: Sequence[str], words: Words) -> float:
        every = [word for text in words for word in text]
        return sum(word not in vocabulary for word in every) / max(1, len(every))

    return of


def statistics(vocabulary: Collection[str], known: Collection[str]) -> list[Statistic]:
    """All figures.

    Parameters
    ----------
    vocabulary : collection of str
        Words of human text that are to be covered.
    known : collection of str
        Words of a sample of the training text; without any, nothing is said of rare ones.
    """
    found = [
        Statistic("entropy", "bits that a word carries by its frequency", 1, 1, entropy),
        Statistic("distinct pairs", "share of pairs of words that are different ones", 1, 1, _distinct(2)),
        Statistic("distinct triples", "share of triples of words that are different ones", 1, 1, _distinct(3)),
        Statistic("self-BLEU", "how much texts are like each other, 0 to 100", -1, 100, self_bleu),
        Statistic("loops", "share of runs of four words that the same text has said before", -1, 1, loops),
        Statistic(
            "frequent sentences", f"share of the {TOP_SENTENCES} most frequent sentences", -1, 1, frequent_sentences
        ),
        Statistic("Zipf slope", "how fast words get rarer; nearer to 0 is slower", 1, 1, zipf),
        Statistic("coverage", "share of the human text's words that are used", 1, 1, _coverage(frozenset(vocabulary))),
    ]
    if known:
        about = "share of words that a sample of the training text does not have"
        found.append(Statistic("rare words", about, 1, 1, _rare(frozenset(known))))
    return found


# ---- compared with human texts -------------------------------------------------------------------------


@dataclass(frozen=True)
class Human:
    """What figures human texts have.

    Attributes
    ----------
    statistics : list of Statistic
    values : float array [statistics]
        Of as many texts, behind the same prompts.
    spread : float array [statistics]
        By how much parts of the human text differ from one another: a standard deviation.
    """

    statistics: list[Statistic]
    values: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls, same: Sequence[str], every: Sequence[str], vocabulary: Collection[str], known: Collection[str]
    ) -> Human:
        """``same``: texts behind the same prompts as those that are to be compared; ``every``: these and others, in the
        order in which they stand, so that those of one author or subject are together; the rest as of `statistics`."""
        figures = statistics(vocabulary, known)
        values = _figures(figures, same)
        if not vocabulary:
            raise ValueError("valid: its texts have no words: expected text with words between spaces or marks")
        size = min(len(same), len(every) // 2)
        starts = np.linspace(0, len(every) - size, _BLOCKS).astype(int)
        parts = np.array([_figures(figures, every[start : start + size]) for start in starts])
        # Parts that overlap differ by less than others would: by the share that two have in common, in the mean.
        common = np.maximum(0, 1 - np.abs(starts[:, None] - starts) / size)
        shared = (common.sum() - _BLOCKS) / (_BLOCKS * (_BLOCKS - 1))
        apart = parts.std(0, ddof=1) / max(1 - shared, 0.05) ** 0.5
        most = np.array([one.most for one in figures])
        least = np.maximum(_LEAST_SPREAD * np.abs(values), _LEAST_SHARE * most)
        return cls(figures, values, np.maximum(apart, least))

    def compared(self, texts: Sequence[str]) -> list[Comparison]:
        """Each figure of texts."""
        found = zip(self.statistics, _figures(self.statistics, texts), self.values, self.spread, strict=True)
        return [Comparison(one.name, one.about, one.wild, *map(float, figures)) for one, *figures in found]


@dataclass(frozen=True)
class Comparison:
    """A figure of texts beside that of human ones.

    Attributes
    ----------
    name, about, wild
        As of `Statistic`.
    value, human : float
    spread : float
        By which human texts differ.
    """

    name: str
    about: str
    wild: int
    value: float
    human: float
    spread: float

    @property
    def distance(self) -> float:
        """From the human texts, in their own spread; below 0: less varied, above: wilder."""
        return self.wild * (self.value - self.human) / self.spread

    @property
    def counted(self) -> float:
        """The distance, as far as it counts."""
        return float(np.clip(self.distance, -_MOST, _MOST))


def wildness(comparisons: Sequence[Comparison]) -> float:
    """Mean distance; below -1 texts are more generic, and above 1 wilder, than parts of human text differ from one
    another."""
    return float(np.mean([one.counted for one in comparisons]))


def misfit(comparisons: Sequence[Comparison]) -> float:
    """Root mean square of the distances, in which opposite ones do not cancel."""
    return float(np.sqrt(np.mean([one.counted**2 for one in comparisons])))


def _figures(statistics: Sequence[Statistic], texts: Sequence[str]) -> npt.NDArray[np.float64]:
    words = [split_words(folded(text)) for text in texts]
    return np.array([one.of(texts, words) for one in statistics])
