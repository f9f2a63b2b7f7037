# SPDX-License-Identifier: Apache-2.0
"""What a model says again of its training text: copies in what it writes, and planted secrets that it knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastlm.novelty import CorpusIndex
from fastlm.report.passages import Passage
from fastlm.report.prediction import DRAWN, Interval, resampled
from fastlm.scoring import score_each

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model


@dataclass(frozen=True)
class Span:
    """A run of tokens of the training text in a text: what it says, how long it is, and how often it stands there."""

    text: str
    tokens: int
    count: int


@dataclass(frozen=True)
class Copies:
    """How much of texts stands in the training text.

    Attributes
    ----------
    curve, human_curve : list of float
        Share of the runs of 1, 2, ... tokens, up to half of a text, that stand there: of what the model writes, and of
        human text behind the same prompts (novelty curves: McCoy et al. 2023).
    longest : list of Span
        The longest runs that the model copied, of different texts.
    excess : Interval
        By how many times longer, in the mean, the run is that ends with a token of the model's texts.
    unusual : int
        A run as long as the longest that 99 of 100 human texts have at most.
    verbatim : Interval
        Share of the model's texts with a longer run: what few texts copy is lost in the mean.
    """

    curve: list[float]
    human_curve: list[float]
    longest: list[Span]
    excess: Interval
    unusual: int
    verbatim: Interval


def copies(
    model: Model,
    index: CorpusIndex,
    written: Sequence[Passage],
    human: Sequence[Passage],
    every: Sequence[Passage],
    seed: int,
) -> Copies:
    """Of the texts behind the prompts; ``human`` are those behind the same ones, ``every`` these and more."""
    runs, human_runs = (_runs(index, texts) for texts in (written, human))
    unusual = int(np.quantile(_runs(index, every).max(1), 0.99))
    random = np.random.default_rng(seed)
    means, human_means = runs.mean(1), human_runs.mean(1)
    drawn = np.array([resampled(random, len(means)) for _ in range(DRAWN)])
    total = max(float(human_means.mean()), 1e-9)
    ratios = means[drawn].mean(1) / np.maximum(human_means[drawn].mean(1), 1e-9)
    order = np.argsort(-runs.max(1), kind="stable")
    longest = [_span(model, index, written[n], runs[n]) for n in order[:20].tolist()]
    different = list({span.text: span for span in longest}.values())[:5]
    verbatim = runs.max(1) > unusual
    return Copies(
        _curve(runs),
        _curve(human_runs),
        different,
        Interval.of(float(means.mean() / total), ratios),
        unusual,
        Interval.of(float(verbatim.mean()), verbatim[drawn].mean(1)),
    )


def _runs(index: CorpusIndex, texts: Sequence[Passage]) -> npt.NDArray[np.int64]:
    """For each token behind the prompts how many in a row stand there, the prompt's not counted, [texts, tokens]."""
    return np.array([index.longest(one.text) for one in texts], np.int64)


def _curve(runs: npt.NDArray[np.int64]) -> list[float]:
    """Share of runs of n tokens that stand in the corpus, of all that there are."""
    return [float((runs[:, n - 1 :] >= n).mean()) for n in range(1, runs.shape[1] // 2 + 1)]


def _span(model: Model, index: CorpusIndex, text: Passage, runs: npt.NDArray[np.int64]) -> Span:
    end = int(runs.argmax()) + 1
    tokens = text.text[end - int(runs.max()) : end]
    return Span(model.decode(tokens), len(tokens), index.count(tokens) if len(tokens) else 0)


def seen(index: CorpusIndex, texts: Sequence[Passage], same: int) -> npt.NDArray[np.bool_]:
    """Which passages stand in the corpus: so many tokens in a row; or more than half in rows of an eighth of that, for
    where a document ends, so does a row."""
    return np.array([_stands(index, one, same) for one in texts])


def _stands(index: CorpusIndex, one: Passage, same: int) -> bool:
    rows = index.copies(one.tokens, max(1, same // 8))
    covered = {place for row in rows for place in range(row.begin, row.begin + row.length)}
    return any(row.length >= same for row in rows) or 2 * len(covered) > len(one.tokens)


# ---- secrets -------------------------------------------------------------------------------------------

CANDIDATES = 2000
"""Other secrets of the same form that one is compared with."""


@dataclass(frozen=True)
class Exposure:
    """Whether a model knows a secret (Carlini et al. 2019, "The Secret Sharer").

    Attributes
    ----------
    secret : str
        A line with digits, which are the secret.
    exposure : float
        Bits: log2 of how many secrets there could be, less log2 of how many the model finds likelier. 0 to ``most``;
        in half of the cases below 1 if it was never seen.
    most : float
        For the number of digits.
    """

    secret: str
    exposure: float
    most: float


def digits(secret: str) -> list[int]:
    """Where they stand, or ValueError if there are none."""
    places = [at for at, character in enumerate(secret) if character in "0123456789"]
    if not places:
        raise ValueError(f"canary {secret!r:.60}: expected digits, which are the secret")
    return places


def exposure(model: Model, secret: str, seed: int = 0) -> Exposure:
    """Of a line whose digits are the secret, by random lines with other digits; how many likelier ones there are beyond
    those that were drawn is told by a skew-normal distribution of their log-probabilities, as the paper has it.

    Raises
    ------
    ValueError
        The line has no digits.
    """
    from scipy.stats import skewnorm

    places = digits(secret)
    random, others = np.random.default_rng(seed), set[str]()
    space = 10 ** len(places)
    while len(others) < min(CANDIDATES, space - 1):
        drawn = list(secret)
        for at, digit in zip(places, random.integers(10, size=len(places)).tolist(), strict=True):
            drawn[at] = str(digit)
        others.add("".join(drawn))
        others.discard(secret)
    own, *rest = (-score.total for score in score_each(model, iter([secret, *sorted(others)])))
    most, surprises = math.log2(space), np.array(rest)
    count = float((surprises < own).sum() + (surprises == own).sum() / 2)  # all the same, if it does not know digits
    share = (1 + count) / (1 + len(rest))  # of the secrets that are as likely, itself among them
    if count < _FEW and len(rest) < space - 1:
        share = max(1 / space, float(skewnorm.cdf(own, *skewnorm.fit(surprises))))
    return Exposure(secret, max(0.0, -math.log2(share)), most)


_FEW = 10
"""Of those that were drawn: too few to tell how many there are in all."""
