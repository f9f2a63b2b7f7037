# SPDX-License-Identifier: Apache-2.0
"""What counts as a character, a word and a sentence: one definition for what is asked, proved and measured.

A word character is a letter, a digit or "_", as ``\\w`` of `re`. A phrase stands in a text as a whole if no word
character touches it; its spaces are any white space. A word is word characters in a row, and apostrophes between them
("don't" is one). A sentence ends with one of `ENDS`, and closing marks, before white space or the end; what is left at
the end with a word character is one, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

ENDS = ".!?\u2026"
APOSTROPHES = "'\u2019"
CLOSERS = "\"')]\u201d\u2019\u00bb"


def is_word(character: str) -> bool:
    """Whether it is part of words."""
    return character.isalnum() or character == "_"


def is_joint(character: str) -> bool:
    """Whether a word may go on with it."""
    return character in APOSTROPHES or is_word(character)


def fold(character: str) -> str:
    """A character in lower case, if that is one."""
    lower = character.lower()
    return lower if len(lower) == 1 else character


def folded(text: str) -> str:
    """As long as it was."""
    return "".join(map(fold, text))


@lru_cache(maxsize=4096)
def pattern(phrase: str, case: bool) -> re.Pattern[str]:
    """Finds a whole phrase in a text, which must be folded unless case counts. Where the phrase begins or ends with a
    mark, a word character may touch the mark."""
    said = r"\s+".join(re.escape(part if case else folded(part)) for part in phrase.split())
    before, behind = (edge if is_word(phrase[at]) else "" for at, edge in ((0, r"(?<!\w)"), (-1, r"(?!\w)")))
    return re.compile(before + said + behind)


def count_phrase(text: str, phrase: str, case: bool) -> int:
    """How often a text says a phrase as a whole."""
    return len(pattern(phrase, case).findall(text if case else folded(text)))


_WORD = re.compile(rf"\w+(?:[{APOSTROPHES}]\w+)*")


def split_words(text: str) -> list[str]:
    """Word characters in a row, joined by apostrophes."""
    return _WORD.findall(text)


def runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n words that follow one another."""
    return list(zip(*(words[k:] for k in range(n)), strict=False))


def count_words(text: str) -> int:
    """How many there are."""
    return len(split_words(text))


def word_starts(text: str) -> list[int]:
    """Where each of these words begins."""
    return [found.start() for found in _WORD.finditer(text)]


_SENTENCE_END = re.compile(rf"(?<=[{re.escape(ENDS)}])[{re.escape(CLOSERS)}{re.escape(ENDS)}]*(?=\s|$)")


def split_sentences(text: str) -> list[str]:
    """Sentences that have a word character."""
    return [part for part in _SENTENCE_END.split(text) if any(map(is_word, part))]


def count_sentences(text: str) -> int:
    """How many there are."""
    return len(split_sentences(text))
