# SPDX-License-Identifier: Apache-2.0
"""Scores of many texts: side by side, in constant memory; and lists of candidates ranked anew."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from fastlm.options import Score

if TYPE_CHECKING:
    from fastlm.model import Model, Prompt

TOGETHER = 8192
"""Tokens that are scored in one call of the engine: enough texts to keep all its columns busy."""


class _Text(NamedTuple):
    ids: array[int]
    fresh: bool  # not behind the start of text
    characters: int | None


def score_each(model: Model, texts: Iterable[Prompt]) -> Iterator[Score]:
    """Scores of texts, in their order. No more of them are held than are scored together."""
    return _in_parts(model, (_read(model, text, place) for place, text in enumerate(texts)))


def score_lines(model: Model, lines: Iterable[str]) -> Iterator[Score]:
    """Scores of lines; with the end of text, if to the model a line is a text."""
    return _in_parts(model, (_read_line(model, line.rstrip("\r\n")) for line in lines))


def _read(model: Model, text: Prompt, place: int) -> _Text:
    try:
        is_text = isinstance(text, str)
        return _Text(model._said(text), not is_text, len(text) if is_text else None)
    except (TypeError, ValueError) as e:
        raise type(e)(f"text {place}: {e}") from None


def _read_line(model: Model, line: str) -> _Text:
    ids = model._said(line)
    if model.eos is not None and model.tokenizer is not None and model.tokenizer.documents == "line":
        ids.append(model.eos)
    return _Text(ids, False, len(line))


def _in_parts(model: Model, texts: Iterable[_Text]) -> Iterator[Score]:
    if (task := model.metadata["lstm.task"]) != "lm":
        raise ValueError(f"only a language model scores texts alone, and this is a model of task {task!r}")
    held: list[_Text] = []
    tokens = 0
    for text in texts:
        held.append(text)
        tokens += len(text.ids)
        if tokens >= TOGETHER or len(held) >= TOGETHER:
            yield from _scores(model, held)
            held, tokens = [], 0
    yield from _scores(model, held)


def _scores(model: Model, held: list[_Text]) -> Iterator[Score]:
    found: list[array[float]] = []
    for fresh, group in groupby(held, key=lambda text: text.fresh):
        start = model.state(start=not fresh)._engine
        with model._decoder() as decoder:
            found += decoder.score_texts(start, [text.ids for text in group])
    for text, logprobs in zip(held, found, strict=True):
        yield model._scored(text.ids, logprobs, text.characters)


# ---- lists of candidates -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A line of a list of candidates.

    Attributes
    ----------
    fields : tuple of str
        The line's, as they were: key, text, and what follows.
    score : Score
        Of the text.
    total : float
        By which the candidates of one key are ranked.
    """

    fields: tuple[str, ...]
    score: Score
    total: float


def rescore(
    model: Model, lines: Iterable[str], weight: float = 1.0, *, length_weight: float = 0.0
) -> Iterator[list[Candidate]]:
    """Ranks candidates anew, for instance of a translation or of recognised speech.

    Parameters
    ----------
    model : Model
    lines : iterable of str
        ``key <tab> text``, or ``key <tab> text <tab> score`` with a natural logarithm; further fields are kept.
        Candidates of one key follow one another.
    weight : float
        The total is score + weight * the model's natural log-probability of the text (with its end, if to the model
        a line is a text),
    length_weight : float
        plus length_weight * its number of tokens.

    Yields
    ------
    list of Candidate
        Of each key, the best first; equal ones as they came.

    Raises
    ------
    ValueError
        Naming the line that cannot be read.
    """
    rows = (_row(number, line) for number, line in enumerate(lines, 1) if line.strip("\r\n"))
    for _, group in groupby(rows, key=lambda fields: fields[0]):
        candidates = list(group)
        ranked = []
        scores = score_lines(model, (fields[1] for fields in candidates))
        for fields, score in zip(candidates, scores, strict=True):
            total = weight * score.total + length_weight * len(score.token_ids)
            ranked.append(Candidate(fields, score, total + (float(fields[2]) if len(fields) > 2 else 0.0)))
        yield sorted(ranked, key=lambda one: -one.total)


def _row(number: int, line: str) -> tuple[str, ...]:
    fields = tuple(line.rstrip("\r\n").split("\t"))
    if len(fields) < 2:
        raise ValueError(f"line {number}: expected a key, a tab and a text, found {line.rstrip()!r:.60}")
    if len(fields) > 2:
        try:
            float(fields[2])
        except ValueError:
            raise ValueError(f"line {number}: expected a score in the third field, found {fields[2]!r:.60}") from None
    return fields
