# SPDX-License-Identifier: Apache-2.0
"""What a text can be asked for: hard goals, which it meets or not, and soft ones, of which it has more or less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastlm.goals import texts
from fastlm.novelty import CorpusIndex
from fastlm.options import GenerationOptions


@dataclass(frozen=True)
class Goal:
    """What all goals have in common."""

    hard: ClassVar[bool] = True


def _phrases(goal: str, given: Any) -> tuple[str, ...]:
    """Without white space around them and without repeats."""
    if isinstance(given, str):
        given = (given,)
    if not isinstance(given, Iterable):
        raise TypeError(f"{goal}: expected a word, or several, found {type(given).__name__}")
    found: dict[str, None] = {}
    for word in given:
        if not isinstance(word, str):
            raise TypeError(f"{goal}: expected words, found {word!r:.60}")
        if not word.strip():
            raise ValueError(f"{goal}: expected words, found {word!r}, which is none")
        found[" ".join(word.split())] = None
    return tuple(found)


_SHOWN = 12


def quoted(words: Iterable[str]) -> str:
    """In a row, for a message: not more than a dozen of them."""
    said = [repr(word) for word in words]
    if len(said) > _SHOWN:
        said = [*said[: _SHOWN - 1], f"{len(said) - _SHOWN + 1:,} more"]
    return " and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]])) or "nothing"


@dataclass(frozen=True, init=False)
class Words(Goal):
    """Words or phrases that a text says or not, as a whole: "cat" is not in "concatenate".

    Parameters
    ----------
    words : str or iterable of str
    case : bool
        Whether upper and lower case count.
    """

    words: tuple[str, ...]
    case: bool

    def __init__(self, words: str | Iterable[str], case: bool = False) -> None:
        if not isinstance(case, bool):
            raise TypeError(f"{type(self).__name__}: case={case!r:.60}: expected True or False")
        object.__setattr__(self, "words", _phrases(type(self).__name__, words))
        object.__setattr__(self, "case", case)

    def said(self, text: str) -> tuple[str, ...]:
        """Those that a text says."""
        return tuple(word for word in self.words if texts.count_phrase(text, word, self.case))

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {quoted(self.words)}{' (in this case)' if self.case else ''}"


def words_of(goals: Iterable[Goal]) -> list[str]:
    """All words that goals speak of."""
    return [word for goal in goals if isinstance(goal, Words) for word in goal.words]


class Include(Words):
    """The text says all of these words; parameters as of `Words`."""

    def met(self, text: str) -> bool:
        """By a text."""
        return self.said(text) == self.words


class Exclude(Words):
    """The text says none of these words; parameters as of `Words`."""

    def met(self, text: str) -> bool:
        """By a text."""
        return not self.said(text)


UNITS = ("tokens", "words", "characters", "sentences")

LONGEST = 1_000_000
"""That can be asked for, in any unit."""


@dataclass(frozen=True)
class Length(Goal):
    """How long the text is.

    Parameters
    ----------
    unit : {"tokens", "words", "characters", "sentences"}
        As `fastlm.goals.texts` counts them; tokens are the model's.
    min, max : int, optional
        At least and at most so many.
    """

    unit: str
    min: int = 0
    max: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"Length: unit={self.unit!r:.60}: expected one of {', '.join(UNITS)}")
        for name, value in (("min", self.min), ("max", self.max)):
            if (value is not None or name == "min") and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"Length: {name}={value!r:.60}: expected a whole number")
            if value is not None and not 0 <= value <= LONGEST:
                raise ValueError(f"Length: {name}={value}: expected a whole number from 0 to {LONGEST:,}")
        if self.min == 0 and self.max is None:
            raise ValueError("Length: expected min or max: any text is of some length")

    def of(self, text: str, tokens: int | None = None) -> int | None:
        """A text's length in this unit; None if only its tokens would tell."""
        if self.unit == "tokens":
            return tokens
        if self.unit == "characters":
            return len(text)
        return texts.count_words(text) if self.unit == "words" else texts.count_sentences(text)

    def within(self, length: int) -> bool:
        """Whether a length is as wanted."""
        return self.min <= length and (self.max is None or length <= self.max)

    def counted(self, number: int) -> str:
        """A number of them, in words."""
        return f"{number:,} {self.unit.removesuffix('s') if number == 1 else self.unit}"

    def __str__(self) -> str:
        if self.max is None:
            return f"at least {self.counted(self.min)}"
        if self.min == 0:
            return f"at most {self.counted(self.max)}"
        if self.min == self.max:
            return f"exactly {self.counted(self.min)}"
        return f"{self.min:,} to {self.counted(self.max)}"


@dataclass(frozen=True)
class Matches(Goal):
    """The whole text has a form: of a regular expression (Rust's syntax), a JSON schema, or a Lark grammar, with the
    ``llguidance`` package, as the options of `fastlm.Model.generate` of these names."""

    regex: str | None = None
    json_schema: Any = field(default=None, hash=False)
    grammar: str | None = None

    def __post_init__(self) -> None:
        if len(self.form) != 1:
            raise ValueError(f"Matches: expected one of regex, json_schema and grammar, found {len(self.form)} of them")
        GenerationOptions.of(self.form)

    @property
    def form(self) -> dict[str, Any]:
        """As an option of `fastlm.Model.generate`."""
        named = {"regex": self.regex, "json_schema": self.json_schema, "grammar": self.grammar}
        return {name: value for name, value in named.items() if value is not None}

    def __str__(self) -> str:
        if self.regex is not None:
            return f"match the regular expression {self.regex!r:.60}"
        return "match the JSON schema" if self.json_schema is not None else "match the grammar"


@dataclass(frozen=True)
class Deadline(Goal):
    """The text is there in time: writing stops at four fifths of it, whatever it has come to.

    Parameters
    ----------
    ms : float
        Milliseconds.
    """

    ms: float

    def __post_init__(self) -> None:
        if isinstance(self.ms, bool) or not isinstance(self.ms, (int, float)):
            raise TypeError(f"Deadline: ms={self.ms!r:.60}: expected a number")
        if not 0 < self.ms < float("inf"):
            raise ValueError(f"Deadline: ms={self.ms}: expected a finite number above 0")

    def __str__(self) -> str:
        return f"within {self.ms:,g} ms"


@dataclass(frozen=True)
class Novel(Goal):
    """The text copies nothing from a corpus that is longer.

    Parameters
    ----------
    max_copied : int
        Tokens in a row that may stand there, 1 to 1000.
    corpus : fastlm.CorpusIndex
    """

    max_copied: int
    corpus: CorpusIndex = field(hash=False)

    def __post_init__(self) -> None:
        GenerationOptions.of({"max_copied": self.max_copied, "corpus": self.corpus})
        if not isinstance(self.corpus, CorpusIndex):
            raise TypeError(f"Novel: corpus={self.corpus!r:.60}: expected an index, as fastlm.load_index gives")

    def __str__(self) -> str:
        tokens = "token" if self.max_copied == 1 else "tokens"
        return f"copy at most {self.max_copied:,} {tokens} in a row"
