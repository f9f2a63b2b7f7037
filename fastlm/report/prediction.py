# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts human texts: those that it was trained on, others, and those of other kinds."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastlm import _engine
from fastlm.evaluation import calibration_error, reliability
from fastlm.float64 import log_softmax
from fastlm.report.passages import Passage, decoded, started

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

Array: TypeAlias = "npt.NDArray[np.float64]"

DRAWN = 200
"""Samples of the passages, drawn with replacement, from which an interval is told (Efron 1979)."""


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies in 95 of 100 such samples."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, drawn: Sequence[float] | Array) -> Interval:
        """Of a figure, and what it is in samples."""
        return cls(value, *map(float, np.quantile(drawn, (0.025, 0.975))))

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def resampled(random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Places of a sample with replacement, drawn in blocks, for neighbours are of one text (the moving-block
    bootstrap: Künsch 1989)."""
    size = max(1, math.isqrt(count) // 2)
    starts = random.integers(count - size + 1, size=-(-count // size))
    return (starts[:, None] + np.arange(size)).reshape(-1)[:count]


def auc(higher: Array, lower: Array) -> float:
    """The probability that one of the first is above one of the second, ties half: the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    which = np.arange(len(higher) + len(lower)) < len(higher)
    return float(roc_auc_score(which, np.concatenate([higher, lower])))


@dataclass(frozen=True)
class Gap:
    """What a model knows better of the text that it was trained on.

    Attributes
    ----------
    train, valid : float
        Mean negative natural log-probability of a token.
    gap : Interval
        The difference, nats a token.
    membership : Interval
        How often, of a passage that the model was trained on and another, it finds the first likelier: loss-based
        membership inference (Yeom et al. 2018), as an area under the ROC curve; 0.5 if it cannot tell.
    spread : float
        By which passages of the other text differ, nats a token: a standard deviation.
    train_passages, valid_passages : list of float
        The mean of each passage.
    """

    train: float
    valid: float
    gap: Interval
    membership: Interval
    spread: float
    train_passages: list[float]
    valid_passages: list[float]


def gap(train: Array, valid: Array, seed: int) -> Gap:
    """Of each token's surprise in passages that stand in the order of the text, [passages, tokens]."""
    random = np.random.default_rng(seed)
    one, other = train.mean(1), valid.mean(1)
    drawn = [(one[resampled(random, len(one))], other[resampled(random, len(other))]) for _ in range(DRAWN)]
    return Gap(
        float(one.mean()),
        float(other.mean()),
        Interval.of(float(other.mean() - one.mean()), [b.mean() - a.mean() for a, b in drawn]),
        Interval.of(auc(other, one), [auc(b, a) for a, b in drawn]),
        float(other.std(ddof=1)),
        one.round(3).tolist(),
        other.round(3).tolist(),
    )


# ---- what it is sure of --------------------------------------------------------------------------------

_BINS = 15

_PLACES = 4000
"""Tokens whose predictions a temperature is fitted to, less for large vocabularies."""

_MOST_NUMBERS = 40_000_000


@dataclass(frozen=True)
class Calibration:
    """Whether the model is right as often as it says.

    Attributes
    ----------
    error : float
        Expected calibration error of the likeliest token (Guo et al. 2017), 0 to 1.
    confidence, accuracy : list of float
        Of bins of like probability that have any: the mean of the likeliest token, and how often it is the one.
    temperature : float
        With which the text is likeliest: below 1 the model is less sure than it could be, above 1 too sure.
    nats, fitted_nats : float
        A token's surprise, and that at this temperature, of the places by which it was fitted.
    """

    error: float
    confidence: list[float]
    accuracy: list[float]
    temperature: float
    nats: float
    fitted_nats: float


def calibration(model: Model, texts: Sequence[Passage]) -> Calibration:
    """Of the tokens behind the prompts of some passages."""
    targets = np.concatenate([one.text for one in texts])
    most = max(1, min(_PLACES, _MOST_NUMBERS // model.vocab_size))
    chosen = set(np.linspace(0, len(targets) - 1, most).astype(int).tolist())
    sure, right, wanted = list[float](), list[bool](), list[int]()
    kept: list[npt.NDArray[Any]] = []
    for at, (logits, target) in enumerate(zip(_logits(model, texts), targets.tolist(), strict=True)):
        best = int(logits.argmax())
        sure.append(float(1 / np.exp(logits - logits[best]).sum()))
        right.append(best == target)
        if at in chosen:
            kept.append(logits)
            wanted.append(target)
    held, places = np.array(kept), np.arange(len(kept))

    def nats(temperature: float) -> float:
        return -float(log_softmax(held / np.float32(temperature))[places, wanted].mean())

    from scipy.optimize import minimize_scalar

    options = {"xatol": 0.005}
    fitted = minimize_scalar(lambda log: nats(math.exp(log)), bounds=(-1.5, 1.5), method="bounded", options=options)
    temperature = math.exp(float(fitted.x))
    _, confidence, accuracy = zip(*reliability(sure, right, _BINS), strict=True)
    error = calibration_error(sure, right, _BINS)
    return Calibration(error, [*confidence], [*accuracy], temperature, nats(1.0), nats(temperature))


def _logits(model: Model, texts: Sequence[Passage]) -> Iterator[npt.NDArray[Any]]:
    """In front of each token behind the prompts, float32 [V]."""
    with model._decoder() as decoder:
        for one in texts:
            state = _engine.State(model._engine)
            decoder.feed(state, array("i", started(model, one.prompt)))
            for token in one.text:
                yield np.frombuffer(decoder.logits(state), np.float32)
                decoder.feed(state, array("i", [token]))


# ---- other kinds of text -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """What the model makes of a file.

    Attributes
    ----------
    file : str
    passages : int
    nats, bits_per_char : float
        A token's surprise, and a character's.
    foreign : float
        How often, of a passage of this file and one of the validation text, the model finds the first more surprising
        (a likelihood test for texts from elsewhere: Ren et al. 2019), 0 to 1.
    flagged : float
        Share of passages that surprise the model more than 95 of 100 of the validation text do.
    """

    file: str
    passages: int
    nats: float
    bits_per_char: float
    foreign: float
    flagged: float


def domains(model: Model, texts: Sequence[Passage], surprise: Array, reference: Array) -> list[Domain]:
    """Of each file of passages, with their tokens' surprises; the reference is that of the validation text."""
    known, limit = reference.mean(1), float(np.quantile(reference.mean(1), 0.95))
    found = []
    for file in dict.fromkeys(one.file for one in texts):
        rows = [n for n, one in enumerate(texts) if one.file == file]
        means = surprise[rows].mean(1)
        characters = sum(len(decoded(model, texts[n])) for n in rows)
        bits = float(surprise[rows].sum()) / math.log(2) / max(1, characters)
        foreign, flagged = auc(means, known), float((means > limit).mean())
        found.append(Domain(file, len(rows), float(means.mean()), bits, foreign, flagged))
    return found


@dataclass(frozen=True)
class Surprise:
    """A passage that the model did not expect: what its tokens add to the text, and the surprise of each in nats."""

    file: str
    nats: float
    pieces: list[str]
    surprises: list[float]


def most_surprising(model: Model, texts: Sequence[Passage], surprise: Array, most: int = 3) -> list[Surprise]:
    """The passages with the largest mean."""
    from fastlm.model import pieces_of

    order, known = np.argsort(-surprise.mean(1))[:most].tolist(), model._need_tokenizer()
    pieces = [list(pieces_of(known, texts[n].text)) for n in order]
    return [
        Surprise(texts[n].file, float(surprise[n].mean()), said, surprise[n].round(2).tolist())
        for n, said in zip(order, pieces, strict=True)
    ]
