# SPDX-License-Identifier: Apache-2.0
"""Models that judge a text: sentiment, topics, answers out of a closed set."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlm import _engine
from fastlm.model import Model, Prompt, is_batch, refused, token_array

LABELS_KEY = "lstm.classifier.labels"

_LABELS = "is for models that write: this one gives labels to texts, which classify does"

_TOGETHER = 256
"""Texts between two looks at pending signals, at most: fewer if they are long."""


@dataclass(frozen=True)
class WordEffect:
    """What a word did: by how much it raised the log-probability of the text's label, which falls by as much when the
    word is left out (Li et al. 2016, "Understanding Neural Networks through Representation Erasure"). ``begin`` and
    ``end`` are its place in the text."""

    word: str
    effect: float
    begin: int
    end: int


class Classification(Mapping[str, float]):
    """The probability of each label.

    Attributes
    ----------
    label : str
        The likeliest; of equals the first.
    logprobs : tuple of float
        Natural logarithms of all probabilities, in the order of the model's labels.
    words : tuple of WordEffect
        Of ``explain=True``, in the order of the text; else empty.
    """

    def __init__(self, labels: Sequence[str], logprobs: Sequence[float], words: Sequence[WordEffect] = ()) -> None:
        self._places = {label: n for n, label in enumerate(labels)}
        self.logprobs = tuple(logprobs)
        self.words = tuple(words)
        self.label = labels[max(range(len(labels)), key=self.logprobs.__getitem__)]

    @property
    def probability(self) -> float:
        """Of the label."""
        return self[self.label]

    def __getitem__(self, label: str) -> float:
        return math.exp(self.logprobs[self._places[label]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"<fastlm.Classification {', '.join(f'{label!r}: {self[label]:.4f}' for label in self)}>"


class Classifier(Model):
    """A model that gives each of a few labels a probability: `classify`. Immutable; any number of threads may use it at
    once.

    Besides those of `Model`: ``labels`` (tuple of str) and ``bidirectional`` (bool: it reads a text in both directions,
    and so only as a whole).
    """

    def __init__(self, engine: _engine.Model, prefix_cache_bytes: int = 0) -> None:
        super().__init__(engine, prefix_cache_bytes)
        self.labels = self._read_labels()
        self.bidirectional: bool = engine.bidirectional

    def __repr__(self) -> str:
        facts = self._engine.info()
        name = self.metadata.get("general.name", "unnamed")
        return f"<fastlm.Classifier {name!r}: {len(self.labels)} labels, LSTM {facts['units']}, on {facts['isa']}>"

    def _read_labels(self) -> tuple[str, ...]:
        count = self._engine.labels
        found = self.metadata.get(LABELS_KEY, [str(n) for n in range(count)])
        if not isinstance(found, list) or len(set(found)) != count or len(found) != count:
            raise _engine.FormatError(f"key '{LABELS_KEY}': expected {count} texts, no two of them alike")
        if not all(label.isprintable() for label in found):  # a file must not speak to the terminal
            raise _engine.FormatError(f"key '{LABELS_KEY}': a label cannot be shown on a line")
        return tuple(found)

    # ---- classify --------------------------------------------------------------------------------------

    def classify(self, text: Any, *, explain: bool = False) -> Any:
        """How likely each label is.

        Parameters
        ----------
        text : str or sequence of int, or a list of such
            A text is read behind the model's start of text, if it has one; token ids are read as they are.
        explain : bool
            Also tell what each word did to the probability of the likeliest label: the text is judged again without
            each of them, so n words cost n texts. Words are what white space parts; of a single one nothing is told.

        Returns
        -------
        Classification
            Or a list of them, one for each text; none depends on the others.

        Raises
        ------
        TypeError, ValueError
            For an empty text, for one of more than 16 384 tokens if the model reads in both directions, and for token
            ids that shall be explained.

        Examples
        --------
        >>> model = fastlm.load("sentiment.gguf")  # doctest: +SKIP
        >>> model.classify("a gripping story, beautifully told")  # doctest: +SKIP
        <fastlm.Classification 'negative': 0.0312, 'positive': 0.9688>
        """
        if not isinstance(explain, bool):
            raise TypeError(f"explain={explain!r}: expected True or False")
        if not is_batch(text):
            return self._judge([text], [self._ids(text)], explain)[0]
        return self._judge(list(text), self._ids_of_each(text), explain)

    def _judge(self, texts: list[Prompt], ids: list[array[int]], explain: bool) -> list[Classification]:
        found = [Classification(self.labels, row) for row in self._logprobs(ids)]
        return [self._explained(*pair) for pair in zip(texts, found, strict=True)] if explain else found

    def _ids(self, text: Prompt) -> array[int]:
        ids = array("i", self.encode(text)) if isinstance(text, str) else token_array(text)
        if not ids:
            raise ValueError("the text is empty: there is nothing to judge")
        if isinstance(text, str) and self.bos is not None:
            ids.insert(0, self.bos)
        self._check_tokens(ids)
        if self.bidirectional and len(ids) > _engine.MOST_SOURCE:
            raise ValueError(
                f"a text of {len(ids)} tokens: a model that reads in both directions takes at most "
                f"{_engine.MOST_SOURCE}; cut it into parts"
            )
        return ids

    def _logprobs(self, texts: Sequence[array[int]]) -> list[array[float]]:
        count, found = len(self.labels), []
        with self._decoder() as decoder:
            for part in _parts(texts):
                if len(part[0]) > _engine.MOST_SOURCE:
                    found.append(self._read_on(decoder, part[0], _engine.Judged(self._engine)))
                else:
                    rows = decoder.classify(part)
                    found += [rows[at : at + count] for at in range(0, len(rows), count)]
        return found

    def _read_on(self, decoder: _engine.Decoder, ids: array[int], state: _engine.Judged) -> array[float]:
        """What is said of a text of any length that goes on."""
        found = array("f")
        for at in range(0, len(ids), _engine.MOST_SOURCE):
            found = decoder.classify([ids[at : at + _engine.MOST_SOURCE]], [state])
        return found

    def _explained(self, text: Prompt, whole: Classification) -> Classification:
        if not isinstance(text, str):
            raise ValueError("explain: expected a text, found token ids")
        words = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
        if len(words) < 2:  # nothing would be left
            return whole
        place, effects = self.labels.index(whole.label), []
        for part in (words[at : at + _TOGETHER] for at in range(0, len(words), _TOGETHER)):
            without = [(text[:begin].rstrip() + " " + text[end:].lstrip()).strip() for begin, end in part]
            for (begin, end), row in zip(part, self._logprobs(self._ids_of_each(without)), strict=True):
                effects.append(WordEffect(text[begin:end], whole.logprobs[place] - row[place], begin, end))
        return Classification(self.labels, whole.logprobs, effects)

    # ---- a text that grows -----------------------------------------------------------------------------

    def state(self, data: bytes | None = None, *, start: bool = True) -> Any:
        """A `ClassifierState`, behind the start of text (``start``, if the model has one): for a text that comes piece
        by piece.

        Raises
        ------
        ValueError
            The model reads in both directions, so it must see the whole text; or ``data`` is given.
        """
        if data is not None:
            raise ValueError("a classifier's state is not kept as bytes: feed it the text")
        if self.bidirectional:
            raise ValueError("this model reads in both directions: call classify with the whole text")
        return ClassifierState(self, _engine.Judged(self._engine), start)

    # ---- what writes texts -----------------------------------------------------------------------------

    generate = refused(_LABELS)
    stream = refused(_LABELS)
    most_likely = refused(_LABELS)
    next_tokens = refused(_LABELS)
    suggest = refused(_LABELS)
    session = refused(_LABELS)
    score = refused(_LABELS)
    compress = refused(_LABELS)
    decompress = refused(_LABELS)


def _parts(texts: Sequence[array[int]]) -> Iterator[list[array[int]]]:
    """Some texts at a time, which have no more tokens together than one may have; or one."""
    part: list[array[int]] = []
    size = 0
    for ids in texts:
        if part and (size + len(ids) > _engine.MOST_SOURCE or len(part) == _TOGETHER):
            yield part
            part, size = [], 0
        part.append(ids)
        size += len(ids)
    if part:
        yield part


class ClassifierState:
    """A text that is judged as it grows: nothing is read again. Made by `Classifier.state`; one thread at a time."""

    def __init__(self, model: Classifier, engine: _engine.Judged, start: bool) -> None:
        self._model, self._engine = model, engine
        self._inside = False  # a text: what is fed goes on with it
        if start and model.bos is not None:
            self.feed([model.bos])
        self._logprobs: array[float] | None = None  # of a text, not of its mere start

    @property
    def position(self) -> int:
        """Tokens read."""
        return self._engine.position

    def feed(self, text: Prompt) -> ClassifierState:
        """Reads on. A piece of text is cut into tokens by itself; nothing at all changes nothing."""
        if ids := self._model._said(text, self._inside):
            with self._model._decoder() as decoder:
                self._logprobs = self._model._read_on(decoder, ids, self._engine)
            self._inside = self._model._inside(ids, self._inside)
        return self

    def classify(self) -> Classification:
        """How likely each label is for the text so far.

        Raises
        ------
        ValueError
            Nothing was read yet.
        """
        if self._logprobs is None:
            raise ValueError("nothing was read yet: feed it a text")
        return Classification(self._model.labels, self._logprobs)

    def copy(self) -> ClassifierState:
        """The same text, which goes on by itself."""
        found = ClassifierState(self._model, self._engine.copy(), start=False)
        found._logprobs, found._inside = self._logprobs, self._inside
        return found

    __copy__ = copy


def named(labels: Sequence[str]) -> str:
    """Labels for a message: all, or the first of many."""
    few = ", ".join(labels[:_SHOWN])
    return few if len(labels) <= _SHOWN else f"{few} and {len(labels) - _SHOWN:,} others"


_SHOWN = 20
