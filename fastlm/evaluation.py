# SPDX-License-Identifier: Apache-2.0
"""How good a model's texts are, by the measure of their task, and how fast they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlm.classifier import named
from fastlm.model import Model

TOGETHER = 64
"""Sources that are written for side by side."""


@dataclass(frozen=True)
class Report:
    """Of a model on pairs.

    Attributes
    ----------
    task : str
    pairs : int
    measures : mapping of str to float
        "translate": ``bleu`` and ``bleu_lower_case`` (Papineni et al. 2002, by sacreBLEU, Post 2018); "summarize":
        ``rouge1``, ``rouge2`` and ``rougeL`` (Lin 2004), F1 in percent, of lower-case tokens ``[a-z0-9]+``; "answer":
        ``accuracy``, the percentage of texts that are the same but for white space around them; "classify":
        ``accuracy`` and ``f1`` (macro average, by scikit-learn), in percent, and the expected ``calibration_error``
        (Guo et al. 2017, 15 bins), in points.
    signature : str
        What else the measure depends on.
    texts : list of str
        That the model wrote.
    tokens, seconds : int, float
        Of all texts, sources among them; and the time that writing them took.
    """

    task: str
    pairs: int
    measures: Mapping[str, float]
    signature: str
    texts: Sequence[str]
    tokens: int
    seconds: float

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in self.measures.items())
        speed = f"{self.pairs / self.seconds:,.0f} texts a second ({self.tokens / self.seconds:,.0f} tokens)"
        return f"{figures} on {self.pairs:,} pairs ({self.signature}); {speed}"


def evaluate(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    task: str,
    *,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Report:
    """Writes a text for each source and compares it with the one given.

    Parameters
    ----------
    model : Model
        A sequence-to-sequence model, or a classifier.
    pairs : sequence of (source, text), or (text, label)
    task : {"translate", "summarize", "answer", "classify"}
        Which measure is taken.
    progress : callable, optional
        Is told how many texts were written so far.
    **options
        Of `Model.generate`.

    Raises
    ------
    ImportError
        The measure's package is missing: ``pip install 'fastlm[evaluate]'``.
    TypeError, ValueError
        As `generate`; or the task is none of these.
    """
    tasks = (*_MEASURES, "classify")
    if task not in tasks:
        raise ValueError(f"task={task!r}: expected one of {', '.join(tasks)}")
    if not pairs:
        raise ValueError("expected at least one pair")
    if task == "classify":
        if options:
            raise ValueError(f"{next(iter(options))}: texts are written with it; a classifier writes none")
        return _evaluate_labels(model, pairs, progress)
    measure = _MEASURES[task]()
    texts, tokens, begin = [], 0, time.perf_counter()
    for part in _parts([source for source, _ in pairs]):
        for found in model.generate(part, **options):
            texts.append(str(found))
            tokens += found.usage["total_tokens"]
        if progress is not None:
            progress(len(texts))
    seconds = time.perf_counter() - begin
    measures, signature = measure(texts, [text for _, text in pairs])
    return Report(task, len(texts), measures, signature, texts, tokens, seconds)


def _evaluate_labels(model: Model, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None] | None) -> Report:
    known = getattr(model, "labels", ())
    for number, (_, label) in enumerate(pairs, 1):
        if known and label not in known:
            raise ValueError(f"pair {number} has the label {label!r:.60}, which the model has not: {named(known)}")
    metrics = needed("sklearn.metrics", "scikit-learn")
    found: list[Any] = []
    begin = time.perf_counter()
    for part in _parts([text for text, _ in pairs]):
        found += model.classify(part)
        if progress is not None:
            progress(len(found))
    seconds = time.perf_counter() - begin
    labels, given = [one.label for one in found], [label for _, label in pairs]
    right = [label == expected for label, expected in zip(labels, given, strict=True)]
    measures = {
        "accuracy": 100 * sum(right) / len(right),
        "f1": 100 * float(metrics.f1_score(given, labels, average="macro")),
        "calibration_error": 100 * calibration_error([one.probability for one in found], right),
    }
    tokens = sum(len(model.encode(text)) for text, _ in pairs)
    return Report("classify", len(found), measures, f"{len(known)} labels", labels, tokens, seconds)


def calibration_error(probabilities: Sequence[float], right: Sequence[bool], bins: int = 15) -> float:
    """Mean distance of probability and accuracy, by bins of like probability (Guo et al. 2017), 0 to 1."""
    found = reliability(probabilities, right, bins)
    return sum(count * abs(said - was) for count, said, was in found) / len(right)


def reliability(probabilities: Sequence[float], right: Sequence[bool], bins: int) -> list[tuple[int, float, float]]:
    """Of each bin of like probability that has any: how many, their mean, and the share that is right."""
    sums = [[0, 0.0, 0.0] for _ in range(bins)]
    for probability, good in zip(probabilities, right, strict=True):
        one = sums[min(bins - 1, int(probability * bins))]
        one[0], one[1], one[2] = one[0] + 1, one[1] + probability, one[2] + good
    return [(int(count), said / count, was / count) for count, said, was in sums if count]


def _parts(sources: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(sources), TOGETHER):
        yield sources[at : at + TOGETHER]


def needed(name: str, package: str | None = None, what: str = "this measure", extra: str = "evaluate") -> Any:
    """A package of an extra, or ImportError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as e:
        package = package or name.partition(".")[0]
        raise ImportError(f"{what} needs the '{package}' package: pip install 'fastlm[{extra}]'") from e


_Measure = Callable[[list[str], list[str]], tuple[dict[str, float], str]]


def _bleu() -> _Measure:
    metrics = needed("sacrebleu").metrics

    def measure(texts: list[str], given: list[str]) -> tuple[dict[str, float], str]:
        cased, lower = metrics.BLEU(), metrics.BLEU(lowercase=True)
        found = {"bleu": cased.corpus_score(texts, [given]).score}
        found["bleu_lower_case"] = lower.corpus_score(texts, [given]).score
        return found, str(cased.get_signature())

    return measure


def _rouge() -> _Measure:
    scorer = needed("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])

    def measure(texts: list[str], given: list[str]) -> tuple[dict[str, float], str]:
        scores = [scorer.score(right, text) for right, text in zip(given, texts, strict=True)]
        found = {name: 100 * sum(one[name].fmeasure for one in scores) / len(scores) for name in scores[0]}
        return found, "F1, lower case, tokens [a-z0-9]+, no stemming"

    return measure


def _accuracy() -> _Measure:
    def measure(texts: list[str], given: list[str]) -> tuple[dict[str, float], str]:
        right = sum(text.strip() == one.strip() for text, one in zip(texts, given, strict=True))
        return {"accuracy": 100 * right / len(texts)}, "the same text"

    return measure


_MEASURES: dict[str, Callable[[], _Measure]] = {"translate": _bleu, "summarize": _rouge, "answer": _accuracy}
