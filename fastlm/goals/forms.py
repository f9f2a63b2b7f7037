# SPDX-License-Identifier: Apache-2.0
"""Words and lengths together with a form, as regular expressions that the ``llguidance`` package intersects.

Word characters are those of all alphabets (`fastlm.goals.texts`), which makes expressions of bytes large. So each
question is asked twice: of texts in ASCII and the goals' own characters, where every expression is exact; and of all
texts, where what is not ASCII may be a word character or not, whichever helps. If the first can be, so can the goals;
if the second cannot be, neither can they; else nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from fastlm.goals.automaton import Bounds
from fastlm.goals.kinds import Goal, Include, Matches, Words
from fastlm.goals.texts import fold, is_word

FUEL = 250_000
"""Of llguidance, for one question: a second or so at most. (Of a million, one of nine words took six.)"""


def possible(goals: Sequence[Goal]) -> bool | None:
    """Whether some text meets all of these goals, regular expressions among them; None: not known.

    Raises
    ------
    ValueError
        A regular expression cannot be read.
    """
    said = [word for goal in goals if isinstance(goal, Words) for word in goal.words]
    said += [goal.regex for goal in goals if isinstance(goal, Matches) and goal.regex is not None]
    own = "".join(sorted(set("".join(said)) - _ASCII))
    exact = _nonempty([f"/[\\x00-\\x7f{_escaped(own)}]*/", *_terms(goals, own, loose=False)])
    if exact is not False:
        return exact
    return False if _nonempty(_terms(goals, own, loose=True)) is False else None


_ASCII = frozenset(map(chr, range(128)))
_ANY = r"(?s:.)"
_WORD = "a-zA-Z0-9_"
_SPACE = r" \t-\r\x1c-\x1f"
_OTHERS = r"\x80-\U0010ffff"
_SAME = {"k": "\u212a", "\u00e5": "\u212b", "\u03c9": "\u2126"}
"""Letters that are lower case of one more than their capital."""


def _terms(goals: Sequence[Goal], own: str, loose: bool) -> list[str]:
    """A regular expression for each goal that has one. ``own``: the goals' characters beyond ASCII."""
    found = []
    for goal in goals:
        if isinstance(goal, Words):
            for word in goal.words:
                # Of what shall not be said the fewest texts say it, so that the most remain.
                said = f"/{_saying(word, goal.case, own, loose and isinstance(goal, Include), not loose)}/"
                found.append(said if isinstance(goal, Include) else f"~{said}")
        elif isinstance(goal, Matches) and goal.regex is not None:
            found.append(f"/{_delimited(goal.regex)}/")
    characters, words = Bounds.of(goals, "characters"), Bounds.of(goals, "words")
    if characters.least or characters.most is not None:
        found.append(f"/{_characters(characters)}/")
    if words.least or words.most is not None:
        found.append(f"/{_words(words, own, loose)}/")
    return found


def _saying(phrase: str, case: bool, own: str, widely: bool, exact: bool) -> str:
    """All texts that say a phrase as a whole. ``widely``: or might, if other characters were what suits; ``exact``: of
    texts in ASCII and the goals' own characters."""
    letters = "".join(c for c in own if is_word(c))
    edge = f"[^{_WORD}]" if widely else f"[^{_WORD}{_escaped(letters)}{'' if exact else _OTHERS}]"
    spaces = f"[{_SPACE}{_OTHERS if widely else ''}]+"
    said = spaces.join("".join(_letter(c, case) for c in part) for part in phrase.split())
    before = f"({_ANY}*{edge})?" if is_word(phrase[0]) else f"{_ANY}*"
    behind = f"({edge}{_ANY}*)?" if is_word(phrase[-1]) else f"{_ANY}*"
    return before + said + behind


def _letter(character: str, case: bool) -> str:
    if case:
        return f"[{_escaped(character)}]"
    lower = fold(character)
    same = {lower, *(c for c in (character.upper(), lower.upper()) if fold(c) == lower)}
    return f"[{_escaped(''.join(sorted(same)))}{_SAME.get(lower, '')}]"


def _characters(bounds: Bounds) -> str:
    return f"{_ANY}{{{bounds.least},{'' if bounds.most is None else bounds.most}}}"


def _words(bounds: Bounds, own: str, loose: bool) -> str:
    other = _escaped("".join(c for c in own if is_word(c)))
    letters, no_letters = (f"{_WORD}{_OTHERS}", _WORD) if loose else (f"{_WORD}{other}",) * 2
    word = f"[{letters}]+('[{letters}]+)*"
    gap = f"([^{no_letters}']|'[^{no_letters}])[^{no_letters}]*"
    some = f"{word}({gap}{word}){{{max(0, bounds.least - 1)},{'' if bounds.most is None else bounds.most - 1}}}"
    outside = f"[^{no_letters}]*"
    if bounds.most == 0:
        return outside
    return f"{outside}({some}{outside}){'?' if bounds.least == 0 else ''}"


def _escaped(characters: str) -> str:
    """For a class of characters, each as its number."""
    return "".join(f"\\x{{{ord(c):x}}}" for c in characters)


def _delimited(regex: str) -> str:
    """With its slashes escaped, as between slashes they must be."""
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", regex)


def _nonempty(terms: Sequence[str]) -> bool | None:
    """Whether regular expressions have a text in common."""
    import llguidance
    from llguidance.numpy import fill_next_token_bitmask

    grammar = llguidance.LLMatcher.grammar_from_lark("start: TEXT\nTEXT: " + " & ".join(terms) + "\n")
    limits = llguidance.LLParserLimits(initial_lexer_fuel=FUEL)
    matcher = llguidance.LLMatcher(_bytes(), grammar, log_level=0, limits=limits)
    if matcher.is_error():
        if "fuel" in matcher.get_error():
            return None
        raise ValueError(matcher.get_error().splitlines()[0])
    if matcher.is_accepting():
        return True
    mask = np.zeros((1, 9), np.int32)
    fill_next_token_bitmask(matcher, mask, 0)
    if matcher.is_error() and "fuel" in matcher.get_error():
        return None
    return bool((mask.view(np.uint8)[0, :32] != 0).any())


def matches(grammar: str, text: str) -> bool:
    """Whether the whole text has a form that llguidance understands."""
    import llguidance

    matcher = llguidance.LLMatcher(_bytes(), grammar, log_level=0)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and bool(matcher.is_accepting())


def together(regexes: Sequence[str]) -> str:
    """A grammar of the texts that match all of these."""
    return "start: TEXT\nTEXT: " + " & ".join(f"/{_delimited(one)}/" for one in regexes) + "\n"


class _Bytes:
    """The 256 bytes as llguidance asks for a vocabulary, and an end of text."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids: ClassVar = [256]
    tokens: ClassVar = [*(bytes([n]) for n in range(256)), b""]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def _bytes() -> Any:
    import llguidance

    vocabulary: Any = _Bytes()
    return llguidance.LLTokenizer(vocabulary, n_vocab=257, eos_token=256, slices=[])
