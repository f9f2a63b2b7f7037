# SPDX-License-Identifier: Apache-2.0
"""Soft goals: of each a text has more or less, which is measured as it grows."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fastlm import _engine
from fastlm.classifier import Classifier, named
from fastlm.controls import same_vocabulary
from fastlm.goals.kinds import UNITS, Goal
from fastlm.goals.texts import count_sentences, count_words, folded, runs
from fastlm.options import check_whole

if TYPE_CHECKING:
    from fastlm.model import Model


class Growing(Protocol):
    """A text in the making, of which goals know how far they have read it.

    Attributes
    ----------
    prompt : str
    ids : array of int
        The prompt's tokens.
    tokens : list of int
        Those behind the prompt.
    text : str
    logprob : float
        Of all tokens, by the model that writes.
    """

    prompt: str
    ids: array[int]
    tokens: list[int]
    text: str
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Soft(Goal):
    """What soft goals have in common.

    Parameters
    ----------
    weight : float
        How much it counts beside others.
    at_least : float, optional
        What would be enough: more of it counts no further.
    priority : int
        Of goals in an order of priority the higher comes first.
    """

    hard: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """Of its values, as `shown`."""

    weight: float = 1.0
    at_least: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for what, value in (("weight", self.weight), ("at_least", self.at_least)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise TypeError(f"{name}: {what}={value!r:.60}: expected a number")
            if value is not None and not _is_finite(value):
                raise ValueError(f"{name}: {what}={value!r:.60}: expected a finite number")
        low, high = self.range
        if self.at_least is not None and not low <= self.at_least <= high:
            between = f"up to {high:g}" if low == -math.inf else f"from {low:g}"
            between += f" to {high:g}" if math.isfinite(low + high) else ""
            raise ValueError(f"{name}: at_least={self.at_least!r:.60}: expected a number {between}, as its values are")
        if self.weight <= 0:
            raise ValueError(f"{name}: weight={self.weight}: expected a number above 0; leave the goal out")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise TypeError(f"{name}: priority={self.priority!r:.60}: expected a whole number")

    def start(self, model: Model, text: Growing) -> Any:
        """What is remembered of a text of a model between two looks at it; it has ``copy``, or is None."""
        return None

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """How much of it each text has by now, the more the better; ``marks`` are what is remembered of each."""
        raise NotImplementedError

    def shown(self, value: float) -> float:
        """A value as people say it."""
        return value

    @property
    def enough(self) -> float:
        """As `values` counts."""
        return math.inf if self.at_least is None else self.at_least


@dataclass(frozen=True, kw_only=True)
class Likely(Soft):
    """The model itself finds the text likely: mean natural log-probability of its tokens."""

    range: ClassVar[tuple[float, float]] = (-math.inf, 0.0)

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """As `Soft.values`."""
        return [text.logprob / max(1, len(text.tokens)) for text in texts]

    def __str__(self) -> str:
        return "likely" + _target(self.at_least)


@dataclass(frozen=True)
class Like(Soft):
    """Another model of the same vocabulary finds the text likely: mean natural log-probability of its tokens (a product
    of experts: Hinton 2002)."""

    range: ClassVar[tuple[float, float]] = (-math.inf, 0.0)

    model: Model = field(hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_writes(self.model, f"{type(self).__name__}: model")

    def check(self, model: Model) -> None:
        """Raises ValueError for a model that writes with another vocabulary."""
        check_beside(self.model, model, f"{type(self).__name__}: model")

    def start(self, model: Model, text: Growing) -> _Read:
        """As `Soft.start`."""
        self.check(model)
        state = _engine.State(self.model._engine)
        with self.model._decoder() as decoder:
            decoder.feed(state, text.ids)
        return _Read(state)

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """As `Soft.values`."""
        with self.model._decoder() as decoder:
            for text, mark in zip(texts, marks, strict=True):
                mark.read(decoder, text.tokens)
        return [mark.mean for mark in marks]

    def __str__(self) -> str:
        return f"like {_name(self.model)}" + _target(self.at_least)


@dataclass(frozen=True)
class Unlike(Like):
    """Another model of the same vocabulary finds the text unlikely: mean natural log-probability of its tokens, negated
    (an anti-expert: Liu et al. 2021)."""

    range: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """As `Soft.values`."""
        return [-value for value in super().values(texts, marks)]

    def __str__(self) -> str:
        return f"unlike {_name(self.model)}" + _target(self.at_least)


@dataclass(frozen=True)
class Label(Soft):
    """A classifier gives prompt and text this label, with a probability that ``at_least`` bounds. One that only reads
    forward goes on from where it was; one that reads both ways reads anew each time."""

    classifier: Classifier = field(hash=False)
    label: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.classifier, Classifier):
            raise TypeError(f"Label: classifier={self.classifier!r:.60}: expected a classifier, as fastlm.load gives")
        if self.label not in self.classifier.labels:
            raise ValueError(f"Label: label={self.label!r:.60}: the classifier knows {named(self.classifier.labels)}")
        if self.at_least is not None and not 0 < self.at_least < 1:
            raise ValueError(f"Label: at_least={self.at_least}: expected a probability, above 0 and below 1")

    def start(self, model: Model, text: Growing) -> _Judged:
        """As `Soft.start`."""
        return _Judged(None if self.classifier.bidirectional else _engine.Judged(self.classifier._engine))

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """As `Soft.values`: log-odds of the label."""
        place = self.classifier.labels.index(self.label)
        whole = [text.prompt + text.text for text in texts]
        rows = _judged(self.classifier, whole, marks)
        return [_log_odds(row[place]) for row in rows]

    def shown(self, value: float) -> float:
        """The probability."""
        small = math.exp(-abs(value))
        return (1 if value >= 0 else small) / (1 + small)

    @property
    def enough(self) -> float:
        """As `values` counts."""
        return math.inf if self.at_least is None else _log_odds(math.log(self.at_least))

    def __str__(self) -> str:
        return f"label {self.label!r}" + _target(self.at_least)


@dataclass(frozen=True)
class Diverse(Soft):
    """The text does not repeat itself: the share of its runs of ``n`` words that are different ones (distinct-n: Li et
    al. 2016)."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    n: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("Diverse: n", self.n, 1)

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """As `Soft.values`."""
        return [distinct(text.text, self.n) for text in texts]

    def __str__(self) -> str:
        return "diverse" + _target(self.at_least)


def distinct(text: str, n: int) -> float:
    """The share of runs of n words in a text that are different ones; 1 if it has none."""
    found = runs(re.findall(r"\w+", folded(text)), n)
    return len(set(found)) / len(found) if found else 1.0


@dataclass(frozen=True)
class Brief(Soft):
    """The text is short: the number of its ``unit``, negated; ``at_least=-12`` is enough with twelve."""

    range: ClassVar[tuple[float, float]] = (-math.inf, 0.0)

    unit: str = "words"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in UNITS:
            raise ValueError(f"Brief: unit={self.unit!r:.60}: expected one of {', '.join(UNITS)}")

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """As `Soft.values`."""
        count = {"words": count_words, "sentences": count_sentences, "characters": len}.get(self.unit)
        return [-float(len(text.tokens) if count is None else count(text.text)) for text in texts]

    def __str__(self) -> str:
        return f"brief, in {self.unit}" + _target(self.at_least)


@dataclass(frozen=True)
class Custom(Soft):
    """What a function of the text (str) says, the more the better: a number."""

    function: Callable[[str], float]
    name: str = "custom"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise TypeError(f"Custom: function={self.function!r:.60}: expected a function of a text")

    def values(self, texts: Sequence[Growing], marks: Sequence[Any]) -> list[float]:
        """As `Soft.values`."""
        found = [self.function(text.text) for text in texts]
        for value in found:
            if isinstance(value, bool) or not hasattr(value, "__float__") or not _is_finite(value):
                raise ValueError(f"Custom: {self.name}: expected a finite number, the function gave {value!r:.60}")
        return [float(value) for value in found]

    def __str__(self) -> str:
        return self.name + _target(self.at_least)


# ---- what is remembered of a text ----------------------------------------------------------------------


class _Read:
    """A model that reads with, and what it thinks of what it has read."""

    def __init__(self, state: _engine.State, logprob: float = 0.0, count: int = 0) -> None:
        self._state, self._logprob, self._count = state, logprob, count

    def copy(self) -> _Read:
        """For a text that goes on from here."""
        return _Read(self._state.copy(), self._logprob, self._count)

    def read(self, decoder: _engine.Decoder, tokens: Sequence[int]) -> None:
        """All tokens that are new."""
        if len(tokens) > self._count:
            self._logprob += sum(decoder.score(self._state, array("i", tokens[self._count :])))
            self._count = len(tokens)

    @property
    def mean(self) -> float:
        """Per token."""
        return self._logprob / max(1, self._count)


class _Judged:
    """A classifier that has read the whole words of a text so far."""

    def __init__(self, state: _engine.Judged | None, read: int = 0) -> None:
        self.state, self.read = state, read

    def copy(self) -> _Judged:
        """For a text that goes on from here."""
        return _Judged(None if self.state is None else self.state.copy(), self.read)


def _judged(classifier: Classifier, texts: Sequence[str], marks: Sequence[_Judged]) -> list[Sequence[float]]:
    """Log-probabilities of the labels, for each text."""
    if classifier.bidirectional:
        return list(classifier._logprobs([classifier._ids(text or " ") for text in texts]))
    ends = [_whole_words(text) for text in texts]
    grown = [
        (mark, text[mark.read : end]) for text, mark, end in zip(texts, marks, ends, strict=True) if end > mark.read
    ]
    _read_on(classifier, [mark.state for mark, _ in grown], [_tokens(classifier, mark, part) for mark, part in grown])
    for mark, end in zip(marks, ends, strict=True):
        mark.read = max(mark.read, end)
    copies = [mark.copy() for mark in marks]
    tails = [_tokens(classifier, mark, text[mark.read :] or " ") for text, mark in zip(texts, marks, strict=True)]
    return _read_on(classifier, [mark.state for mark in copies], tails)


def _whole_words(text: str) -> int:
    """Where the last word of a text begins, with the space before it: it may go on."""
    found = re.search(r"\s+\S*\Z", text)
    return found.start() if found else 0


def _tokens(classifier: Classifier, mark: _Judged, text: str) -> array[int]:
    ids = classifier._said(text, inside=mark.read > 0)
    if mark.read == 0 and mark.state is not None and mark.state.position == 0 and classifier.bos is not None:
        ids.insert(0, classifier.bos)
    return ids


def _read_on(classifier: Classifier, states: list[Any], texts: list[array[int]]) -> list[Sequence[float]]:
    if not texts:
        return []
    with classifier._decoder() as decoder:
        rows, count = decoder.classify(texts, states), len(classifier.labels)
    return [rows[at : at + count] for at in range(0, len(rows), count)]


def _log_odds(logprob: float) -> float:
    """Up to those of a probability that float32 hardly tells from 1."""
    other = -math.expm1(min(logprob, -1e-9))
    return logprob - math.log(other)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def check_writes(model: Any, name: str) -> None:
    """Raises TypeError for what is no language model, with the name that it was given by."""
    from fastlm.model import Model

    if not isinstance(model, Model) or model.info["task"] != "lm":
        raise TypeError(f"{name}={model!r:.60}: expected a language model, as fastlm.load gives it")


def check_beside(model: Model, writer: Model, name: str) -> None:
    """Raises ValueError for a model with another vocabulary than the one that writes."""
    if model is not writer and not same_vocabulary(writer, model):
        raise ValueError(
            f"{name}: it has another vocabulary than the model that writes; fastlm train --pretrained or --tokenizer "
            "makes one with the same"
        )


def _name(model: Model) -> str:
    return str(model.metadata.get("general.name", "another model"))


def _target(at_least: float | None) -> str:
    return "" if at_least is None else f", at least {at_least:g}"
