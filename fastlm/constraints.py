# SPDX-License-Identifier: Apache-2.0
"""Texts of a given form: which tokens may come next is asked of the ``llguidance`` package, token by token."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fastlm.options import FORMS, GenerationOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model
    from fastlm.suggest import Words


MOST_HEALED = 4
"""Tokens of a prompt that are written anew at most."""


class Steps(Protocol):
    """What says, token by token, which may come in one text: a `Guide`, or the like of it."""

    @property
    def complete(self) -> bool: ...
    @property
    def over(self) -> bool: ...
    def allowed(self) -> npt.NDArray[np.uint32]: ...
    def accept(self, token: int) -> str | None: ...
    def behind(self, token: int) -> tuple[str | None, bool]: ...
    def copy(self) -> Steps: ...


class Shape(Protocol):
    """What makes them: a `Form`, or the like of it."""

    def guide(self, allowed: npt.NDArray[np.uint32] | None, ids: Sequence[int]) -> Steps: ...


class _Vocabulary:
    """A model's tokens as llguidance asks for them."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, model: Model, ends: Sequence[int]) -> None:
        known = self._known = model._need_tokenizer()
        if not known.exact_pieces:
            raise ValueError(
                f"{', '.join(FORMS)} need tokens that are text as they are (characters, bytes, byte-level BPE); "
                "this model's tokenizer joins its tokens with spaces"
            )
        self.tokens = [*known.pieces, *[b""] * (model.vocab_size - known.vocab_size + 1)]
        for token in (*ends, known.unknown):
            if token is not None:
                self.tokens[token] = b""
        self.eos_token_id = ends[0] if ends else model.vocab_size  # one that cannot come
        self.special_token_ids = list(ends)

    def __call__(self, text: bytes | str) -> list[int]:
        return self._known.encode_inside(text.decode() if isinstance(text, bytes) else text)


class Form:
    """A form, compiled for one model."""

    def __init__(self, model: Model, grammar: str, ends: Sequence[int]) -> None:
        import llguidance

        size = model.vocab_size
        vocabulary: Any = _Vocabulary(model, ends)
        self._known, self._grammar = model._need_tokenizer(), grammar
        self._vocabulary = llguidance.LLTokenizer(vocabulary, n_vocab=size + 1, eos_token=[*ends] or [size])
        self._matcher = self._matching(grammar)
        # Where it is at a loss llguidance lets anything come that is no text.
        self._texts = token_mask(size + 1, [token for token, piece in enumerate(vocabulary.tokens) if piece])
        self._ends = token_mask(size + 1, ends)

    def _matching(self, grammar: str) -> Any:
        import llguidance

        found = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
        if found.is_error():
            raise ValueError(_in_short(found.get_error()))
        return found

    @cached_property
    def _led(self) -> Any:
        """Of a text with the tokenizer's lead before it."""
        return self._matching(_behind(self._known.lead, self._grammar))

    def guide(self, allowed: npt.NDArray[np.uint32] | None, ids: Sequence[int]) -> Guide:
        """For one text. allowed: a bit for each token that may come at all; ids: what stands before the text."""
        texts, ends = self._texts.copy(), self._ends.copy()
        if allowed is not None:
            texts[: len(allowed)] &= allowed
            ends[: len(allowed)] &= allowed
        matcher = self._led if self._known.lead_behind(ids) else self._matcher
        return Guide(matcher.deep_copy(), texts, ends)


class Healing:
    """Lets a prompt's last bytes be written anew, by tokens that may go on where the prompt's had to end: tokens
    that write them, their beginning, or more (token healing, as in Microsoft's ``guidance``)."""

    def __init__(self, words: Words, bytes_left: bytes, allowed: npt.NDArray[np.uint32] | None) -> None:
        self._words, self._left, self._also = words, bytes_left, allowed

    def allowed(self) -> npt.NDArray[np.uint32]:
        """A bit for each token that may come next."""
        mask = token_mask(self._words.size, self._words.covering(self._left))
        return mask if self._also is None else mask & self._also

    def accept(self, token: int) -> str | None:
        """Notes a token."""
        self._left = self._left[len(self._words.known.pieces[token]) :]
        return None

    @property
    def over(self) -> bool:
        """Whether all is written."""
        return not self._left


def healed(words: Words, ids: array[int]) -> tuple[array[int], str]:
    """A prompt without the last tokens that a longer one might have begun like, and their text."""
    if not words.known.exact_pieces:
        raise ValueError("token_healing needs tokens that are text as they are; this model joins them with spaces")
    cut, text = 0, ""
    for n in range(1, min(MOST_HEALED, len(ids) - 1) + 1):
        pieces = [words.known.pieces[token] if token < words.known.vocab_size else b"" for token in ids[-n:]]
        tail = b"".join(pieces)
        if not all(pieces) or not words.longer(tail):
            break
        try:
            cut, text = n, tail.decode()
        except UnicodeDecodeError:  # half a character
            continue
    return ids[: len(ids) - cut], text


class Phrase(NamedTuple):
    """What a text must include. text: its bytes, if tokens are text as they are; ways: to write it in tokens; lasts:
    tokens with its last byte."""

    said: str | tuple[int, ...]
    text: bytes
    ways: tuple[tuple[int, ...], ...]
    lasts: frozenset[int]


class Wanted:
    """What a text still lacks of what it must include. A value: `behind` gives another."""

    def __init__(
        self,
        phrases: tuple[Phrase, ...],
        pieces: Sequence[bytes],
        done: frozenset[Phrase] = frozenset(),
        begun: frozenset[tuple[Phrase, tuple[int, ...], int]] = frozenset(),
        tail: bytes = b"",
        lead: bytes = b"",
    ) -> None:
        self._phrases, self._pieces, self._done, self._begun, self._tail = phrases, pieces, done, begun, tail
        self._lead = lead

    @property
    def missing(self) -> tuple[str | tuple[int, ...], ...]:
        """The phrases that are not in the text yet."""
        return tuple(phrase.said for phrase in self._phrases if phrase not in self._done)

    @property
    def needed(self) -> int:
        """Tokens that are still needed, at least."""
        left = self._left.copy()
        for phrase, way, n in self._begun:
            left[phrase] = min(left[phrase], len(way) - n)
        return sum(left.values())

    def asked(self) -> set[int]:
        """Tokens that begin a phrase, or go on with one."""
        begin = {way[0] for phrase in self._phrases if phrase not in self._done for way in phrase.ways}
        return begin | {way[n] for _, way, n in self._begun}

    def needed_behind(self, token: int) -> int:
        """`needed`, after a token. Of most tokens it is known at once: they begin nothing and complete nothing."""
        if token in self._moving:
            return self.behind(token).needed
        return sum(self._left.values())

    @cached_property
    def _moving(self) -> frozenset[int]:
        return frozenset(self.asked()).union(*(phrase.lasts for phrase in self._phrases if phrase not in self._done))

    @cached_property
    def _left(self) -> dict[Phrase, int]:
        """What is not done, and how many tokens each takes at least from its beginning."""
        return {phrase: min(map(len, phrase.ways)) for phrase in self._phrases if phrase not in self._done}

    def behind(self, token: int) -> Wanted:
        """After a token."""
        begun = {(phrase, way, n + 1) for phrase, way, n in self._begun if way[n] == token}
        begun |= {(phrase, way, 1) for phrase in self._phrases for way in phrase.ways if way[0] == token}
        # Of a phrase with a text that decides, for a first token may have said less than it holds.
        done = self._done | {phrase for phrase, way, n in begun if n == len(way) and not phrase.text}
        piece = self._pieces[token] if token < len(self._pieces) else b""
        tail, lead = self._tail + piece.removeprefix(self._lead), b"" if piece else self._lead
        done |= {phrase for phrase in self._phrases if phrase.text and phrase.text in tail}
        longest = max(len(phrase.text) for phrase in self._phrases)
        going_on = frozenset(one for one in begun if one[0] not in done)
        return Wanted(self._phrases, self._pieces, done, going_on, tail[max(0, len(tail) - longest) :], lead)


class Guide:
    """Which tokens may come in one text, and when it is done."""

    def __init__(self, matcher: Any, texts: npt.NDArray[np.uint32], ends: npt.NDArray[np.uint32]) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        self._matcher, self._fill, self._texts, self._ends = matcher, fill_next_token_bitmask, texts, ends
        self._mask = np.zeros((1, len(texts)), np.int32)

    def allowed(self) -> npt.NDArray[np.uint32]:
        """A bit for each token that may come next."""
        self._fill(self._matcher, self._mask, 0)
        if self._matcher.is_error():
            raise ValueError(f"the form cannot be followed: {_in_short(self._matcher.get_error())}")
        mask: npt.NDArray[np.uint32] = self._mask[0].view(np.uint32)
        mask &= self._texts | self._ends if self.complete else self._texts
        return mask

    def copy(self) -> Guide:
        """Where it is now, for another text that goes on from here."""
        return Guide(self._matcher.deep_copy(), self._texts, self._ends)

    def accept(self, token: int) -> str | None:
        """Notes a token; the reason to end if nothing more may come."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise ValueError(f"the form cannot be followed: {_in_short(self._matcher.get_error())}")
        if not self._matcher.is_stopped():
            return None
        return "stop" if self.complete else "unsatisfiable"

    def behind(self, token: int) -> tuple[str | None, bool]:
        """What `accept` would say, and whether the text would have its form then; nothing is noted."""
        found = self.accept(token), self.complete
        self._matcher.rollback(1)
        return found

    over = False  # a form is never behind

    @property
    def complete(self) -> bool:
        """Whether the text has its form now."""
        return bool(self._matcher.is_accepting())


def grammar_of(options: GenerationOptions) -> str | None:
    """The form that options ask for, as llguidance takes it.

    Raises
    ------
    ImportError
        ``llguidance`` is missing.
    ValueError, TypeError
        The form cannot be read, or there are several.
    """
    asked = {name: value for name in FORMS if (value := getattr(options, name)) is not None}
    if not asked:
        return None
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)}: a text has one form; leave one out, or write a grammar of both")
    try:
        from llguidance import LLMatcher
    except ImportError as e:
        raise ImportError(
            f"{next(iter(asked))} needs the 'llguidance' package: pip install 'fastlm[constraints]'"
        ) from e
    [(name, value)] = asked.items()
    if name == "regex":
        grammar = LLMatcher.grammar_from_regex(value)
    elif name == "grammar":
        grammar = LLMatcher.grammar_from_lark(value)
    elif name == "choices":
        grammar = LLMatcher.grammar_from_regex("|".join(map(_escaped, value)))
    else:
        grammar = _json_grammar(LLMatcher, value)
    if (problem := LLMatcher.validate_grammar(grammar)) and not problem.startswith("WARNING"):
        raise ValueError(f"{name}={value!r:.80} cannot be read: {_in_short(problem)}")
    return grammar


def _behind(lead: str, grammar: str) -> str:
    """A grammar of the same texts with something before each."""
    inner = json.loads(grammar) if grammar.startswith("{") else {"grammars": [{"lark_grammar": grammar}]}
    inner["grammars"][0]["name"] = "text"
    start = {"lark_grammar": f"start: {json.dumps(lead)} @text"}
    return json.dumps({**inner, "grammars": [start, *inner["grammars"]]})


def _json_grammar(matcher: Any, schema: Any) -> str:
    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        said = json.dumps({} if schema is True else {"not": {}} if schema is False else schema)
    except ValueError as e:
        raise ValueError(f"json_schema is not JSON: {e}") from None
    except TypeError as e:
        raise TypeError(f"json_schema is not JSON: {e}") from None
    if not isinstance(schema, (Mapping, bool)):
        raise TypeError(f"json_schema={schema!r:.60}: expected a mapping, or its JSON")
    # Else a model that has learned no JSON writes spaces for ever.
    grammar: str = matcher.grammar_from_json_schema(said, defaults={"whitespace_flexible": False})
    return grammar


def _escaped(text: str) -> str:
    """As a regular expression of Rust's."""
    return "".join(f"\\{c}" if c in r"\.+*?()|[]{}^$#&-~/" else c for c in text)


def _in_short(message: str) -> str:
    """The first line, and that which says why."""
    lines = [line.strip() for line in message.strip().splitlines()] or [""]
    why = [line for line in lines[1:] if line.startswith("error:")]
    return " ".join([lines[0], *why[:1]])


def token_mask(vocab_size: int, tokens: Sequence[int]) -> npt.NDArray[np.uint32]:
    """A bit for each token."""
    bits = np.zeros(-(-vocab_size // 32) * 32, bool)
    bits[np.asarray(tokens, np.int64)] = True
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
