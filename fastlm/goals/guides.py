# SPDX-License-Identifier: Apache-2.0
"""Which tokens may come so that a text meets its hard goals before its room is used up.

The automaton of words and lengths is read a token at a time: what each of the vocabulary's tokens does in a state is
found once and kept. While there is room, all tokens may come that lead to no dead end by themselves. Where it is tight,
only those may behind which the shortest completion still fits, and at last that completion itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastlm.constraints import Shape, Steps, token_mask
from fastlm.controls import remember
from fastlm.goals.automaton import Automaton, Bounds, Budget, Lengths, State, Step, Symbol, TooManyStates
from fastlm.goals.kinds import LONGEST, Goal, words_of
from fastlm.goals.texts import count_words, folded, is_joint, is_word

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

KEPT = 64 << 20
"""Bytes, for what each token does in the places that are kept."""

ROOM = 8
"""Tokens beyond twice what is needed that count as room: more than one token can undo of a word."""

LONG = 24
"""Characters of a word that does not go on if words are scarce."""

_SPARE = 3
"""Words and sentences that a token may add or undo, beyond the words of a phrase."""

_MANY = 50_000  # answers that are kept

_DIGITS = np.array([1 << 40, 1 << 20, 1])  # of a number that stands for three small ones


class Place(NamedTuple):
    """Where a text stands: the automaton's state, and the bytes of a character that is not whole yet."""

    state: State
    left: bytes


@dataclass(frozen=True)
class Lifted:
    """What each token does in a place: the place behind it (-1: none), and what it adds to each length."""

    places: list[Place]
    behind: npt.NDArray[np.int32]
    characters: npt.NDArray[np.int32]
    words: npt.NDArray[np.int32]
    sentences: npt.NDArray[np.int32]
    opened: npt.NDArray[np.int32]
    """1 if the end of the text would end a sentence."""
    excluded: npt.NDArray[np.int32]
    """1 if the text would end with a word that is ruled out: it may only go on with it, as "the" with "theology", which
    models that want the word would do by leaving out a space."""


@dataclass(frozen=True)
class Needed:
    """The shortest completion of a text: its tokens, and what they add to its lengths."""

    tokens: tuple[int, ...]
    characters: int
    words: int
    sentences: int


class _WayOut(NamedTuple):
    """Leaves a word: how many tokens it takes, what they add to a text's lengths, and the place behind."""

    tokens: int
    characters: int
    words: int
    sentences: int
    behind: Place


@dataclass(frozen=True)
class Counts:
    """Of a text so far."""

    tokens: int = 0
    characters: int = 0
    words: int = 0
    sentences: int = 0

    def with_more(self, tokens: int, characters: int, words: int, sentences: int) -> Counts:
        """Of a text that has gone on."""
        return Counts(
            self.tokens + tokens, self.characters + characters, self.words + words, self.sentences + sentences
        )


class Alphabet:
    """The characters that a model's tokens can say.

    Parameters
    ----------
    model : Model
    pieces : sequence of bytes, optional
        What its tokens say; empty for those that may not come.
    """

    def __init__(self, model: Model, pieces: Sequence[bytes] | None = None) -> None:
        known = model._need_tokenizer()
        if not known.exact_pieces:
            raise ValueError(
                "goals need tokens that are text as they are (characters, bytes, byte-level BPE); this model's "
                "tokenizer joins its tokens with spaces"
            )
        self._encode, self._pieces = known.encode_inside, known.pieces if pieces is None else pieces
        self._known: dict[str, bool] = {}

    def __contains__(self, character: object) -> bool:
        if not isinstance(character, str):
            return False
        if character not in self._known:
            said = b"".join(self._pieces[token] for token in self._encode(character))
            self._known[character] = said == character.encode()
        return self._known[character]

    def __iter__(self) -> Iterator[str]:
        """Those that are tokens."""
        texts = (piece.decode("utf-8", "ignore") for piece in self._pieces)
        return (text for text in texts if len(text) == 1 and text in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def spelled(self, text: str) -> list[int]:
        """Tokens of a text, without those that may not come."""
        tokens: list[int] = self._encode(text)
        if all(self._pieces[token] for token in tokens):
            return tokens
        return [token for character in text for token in self._encode(character)]


class _Vocabulary:
    """Tokens behind some bytes of a character as a tree of symbols, of which many tokens have the same.

    Attributes
    ----------
    nodes : list of (int, Symbol)
        From the second on: what each comes behind, and by what.
    used : list of int
        Those that tokens end at.
    node, characters : array of int
        Of each token; the node is the one behind the last, -1, for those that are no text.
    several : array of bool
        Tokens of more than one byte.
    left : dict
        What tokens leave of a character that is not whole.
    """

    def __init__(self, machine: Automaton, pieces: Sequence[bytes], before: bytes) -> None:
        known: dict[tuple[int, Symbol], int] = {}
        self.node, self.characters = np.full(len(pieces), -1), np.zeros(len(pieces), np.int32)
        self.several = np.array([len(piece) > 1 for piece in pieces])
        self.left: dict[int, bytes] = {}
        for token, piece in enumerate(pieces):
            if not piece or (text := _whole(before + piece)) is None:
                continue
            at = 0
            for character in text[0]:
                at = known.setdefault((at, machine.symbol(character)), len(known) + 1)
            self.node[token], self.characters[token] = at, len(text[0])
            if text[1]:
                self.left[token] = text[1]
        self.nodes, self.used = list(known), np.unique(self.node[self.node >= 0]).tolist()


class WishForm:
    """Goals of one model's texts.

    Parameters
    ----------
    model : Model
    goals : sequence of Goal
        Hard ones, but for forms.
    ends : sequence of int
        Tokens that end a text.
    most : int
        Tokens that there is room for.
    form : Shape, optional
        That the text has besides.
    allowed : array of uint32, optional
        A bit for each token that may come at all.
    """

    def __init__(
        self,
        model: Model,
        goals: Sequence[Goal],
        ends: Sequence[int],
        most: int,
        form: Shape | None,
        allowed: npt.NDArray[np.uint32] | None,
    ) -> None:
        known = self._known = model._need_tokenizer()
        self.form = form
        self._pieces = [*known.pieces, *[b""] * (model.vocab_size - len(known.pieces))]
        for token in _barred(model.vocab_size, [*ends, known.unknown], allowed):
            self._pieces[token] = b""
        self.alphabet = Alphabet(model, self._pieces)
        self.lengths, tokens = Lengths.of(goals), Bounds.of(goals, "tokens")
        self.machine = _machine(goals, self.alphabet, self.lengths)
        self.tokens = Bounds(tokens.least, most if tokens.most is None else min(most, tokens.most))
        self.room = self.tokens.most or 0
        self.ends = token_mask(model.vocab_size, ends)
        texts, words = [piece.decode("utf-8", "ignore") for piece in self._pieces], words_of(goals)
        self.in_words = np.array([is_joint(text[:1]) for text in texts])
        """Tokens that may go on with a word."""
        self.wordless = np.array([not any(map(is_word, text)) for text in texts])
        """Tokens without a word character."""
        self.long = max([LONG, *map(len, words)])
        self.spare = _SPARE + max(map(count_words, words), default=0)
        self._pads = self._padding(texts, words)
        self._lifted: dict[Place, Lifted] = {}
        self._kept = max(8, KEPT // (24 * model.vocab_size))
        self._outs: dict[Place, list[_WayOut]] = {}
        self._needed: dict[tuple[Place, bool, Lengths], Needed | None] = {}
        self._lock = threading.RLock()  # the automaton numbers its states as they are met

    def guide(self, allowed: npt.NDArray[np.uint32] | None, ids: Sequence[int]) -> WishGuide:
        """For one text. allowed: a bit for each token that may come at all; ids: what stands before the text."""
        if self._known.lead_behind(ids):
            raise ValueError(
                "goals: this model's tokenizer puts a space before a text, which would count: give a prompt that the "
                "text goes on from"
            )
        inner = None if self.form is None else self.form.guide(allowed, ids)
        return WishGuide(self, allowed, inner, Place(self.machine.start, b""), Counts())

    # ---- what tokens do --------------------------------------------------------------------------------

    def lifted(self, place: Place) -> Lifted:
        """What each token does."""
        if (found := self._lifted.get(place)) is None:
            with self._lock:
                found = self._lift(place)
            remember(self._lifted, self._kept, place, found)
        return found

    def _lift(self, place: Place) -> Lifted:
        tokens = self._vocabulary if not place.left else _Vocabulary(self.machine, self._pieces, place.left)
        steps: list[Step | None] = [Step(place.state, 0, 0)]
        for parent, symbol in tokens.nodes:
            before = steps[parent]
            step = None if before is None else self.machine.step_by(before.state, symbol)
            steps.append(None if before is None or step is None else before.then(step))
        numbers: dict[Place, int] = {}
        rows = np.full((6, len(steps) + 1), -1, np.int32)  # the last is that of no text
        for node in tokens.used:
            if (step := steps[node]) is not None:
                number = numbers.setdefault(Place(step.state, b""), len(numbers))
                excluded = self.machine.says_excluded(step.state) * (1 if self.machine.in_word(step.state) else 2)
                opened = self.machine.open_sentence(step.state)
                rows[:, node] = number, 0, step.words, step.sentences, opened, excluded
        found = rows[:, tokens.node]
        found[1] = np.where(found[0] < 0, -1, tokens.characters)
        found[5] = (found[5] == 2) | (found[5] == 1) & tokens.several  # letter by letter a word may become a longer one
        for token, left in tokens.left.items():
            if (step := steps[tokens.node[token]]) is not None:
                found[0, token] = numbers.setdefault(Place(step.state, left), len(numbers))
        return Lifted(list(numbers), *found)

    @cached_property
    def _vocabulary(self) -> _Vocabulary:
        return _Vocabulary(self.machine, self._pieces, b"")

    def _read(self, place: Place, text: str) -> Step | None:
        """Behind a text."""
        with self._lock:
            return self.machine.read(place.state, text)

    # ---- what a text still needs -----------------------------------------------------------------------

    def needed(self, place: Place, counts: Counts, closed: bool = False) -> Needed | None:
        """The shortest completion, whatever the room, but for characters that are only missed in number; None if there
        is none. ``closed``: it does not begin with a word character."""
        left = self.lengths.less(counts.characters, counts.words, counts.sentences)
        words, sentences = (Bounds(one.least, None) for one in left[1:])
        found = self._completion(place, closed, Lengths(_ANY, words, sentences))
        if found is None or (left.words.holds(found.words) and left.sentences.holds(found.sentences)):
            return found
        return self._completion(place, closed, left._replace(characters=_ANY))

    def _completion(self, place: Place, closed: bool, lengths: Lengths) -> Needed | None:
        key = place, closed, lengths
        with self._lock:
            if key not in self._needed:
                if len(self._needed) > _MANY:
                    self._needed.clear()
                ways = (self._completed(start, *key) for start in self._starts(place, closed))
                self._needed[key] = next(filter(None, ways), None)
            return self._needed[key]

    def _starts(self, place: Place, closed: bool) -> Iterator[bytes]:
        """With what a completion may begin."""
        if not place.left:
            yield from (b"", b" ") if closed else (b"",)
            return
        first, size = place.left[0], len(place.left)
        whole = 2 + (first >= 0xE0) + (first >= 0xF0)
        second = {0xE0: 0xA0, 0xF0: 0x90}.get(first, 0x80)  # shorter characters are not written so long
        middle = bytes([second, 0x80][size - 1 :][: whole - size - 1])
        yield from (middle + bytes([last]) for last in _TAILS)

    def _completed(self, start: bytes, place: Place, closed: bool, lengths: Lengths) -> Needed | None:
        """The shortest completion that begins so, as tokens."""
        begun = _whole(place.left + start)
        if begun is None or (before := self._read(place, begun[0])) is None:
            return None
        try:
            text = self.machine.completed(before.state, lengths.less(0, before.words, before.sentences), Budget())
        except TooManyStates:  # nobody could write it in time
            return None
        if text is None or (closed and not start and is_joint(text[:1])):
            return None
        after, tokens = self._read(place, begun[0] + text), self._spelled(start + text.encode())
        if after is None or tokens is None:
            return None
        sentences = after.sentences + self.machine.open_sentence(after.state)
        return Needed(tokens, len(begun[0]) + len(text), after.words, sentences)

    @cached_property
    def _bytes(self) -> dict[bytes, int]:
        """Tokens that are a single byte."""
        return {piece: token for token, piece in enumerate(self._pieces) if len(piece) == 1}

    def _padding(self, texts: Sequence[str], words: Sequence[str]) -> tuple[int | None, int]:
        """The longest token that says nothing wherever it comes behind a text that meets its goals, if there may be
        further words and sentences; and how many characters a token may be hoped to have where there may not."""
        own = {part for word in words for part in folded(word).split()}
        free = self.lengths.words.most is None and self.lengths.sentences.most is None
        silent = [
            (len(text), token)
            for token, text in enumerate(texts)
            if free and text[:1] == " " and text[1:].isalpha() and folded(text[1:]) not in own
        ]
        if silent:
            size, token = max(silent)
            return token, size
        return None, min(_HOPED, max(1, *map(len, texts)))

    def padding(self, characters: int, tokens: int) -> tuple[int, ...]:
        """At least so many tokens of so many characters that say nothing."""
        token, size = self._pads
        space = self._bytes.get(b" ")
        wide = [] if token is None else [token] * min(characters // size, max(0, characters - tokens) // (size - 1))
        rest = max(tokens - len(wide), characters - size * len(wide))
        return (*wide, *([] if space is None else [space] * rest))

    def pads(self, characters: Any) -> Any:
        """How many tokens padding of so many characters takes, of an array of them: if there is a token for it, else as
        may be hoped."""
        token, size = self._pads
        return -(-characters // size) if token is None else characters // size + characters % size

    def fits(self, counts: Counts, tokens: Any, characters: Any) -> Any:
        """Whether there is room behind a text for so many tokens of so many characters, and padding; or for each of
        arrays of such."""
        bounds, there = self.lengths.characters, counts.characters + characters
        tokens = counts.tokens + tokens + self.pads(np.maximum(0, bounds.least - there))
        more = np.maximum(0, self.tokens.least - tokens)
        return (tokens <= self.room) & (there <= _most(bounds)) & (there + more <= np.maximum(there, _most(bounds)))

    def fits_behind(
        self, kinds: Sequence[tuple[Place, Counts]], kind_of: npt.NDArray[np.int64], characters: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """Whether there is room for what is needed behind texts of so many characters more, each of a kind: those of a
        kind end in the same place, and all have as many tokens."""
        fewest = np.full(len(kinds), LONGEST)
        np.minimum.at(fewest, kind_of, characters)
        ways = [self._completions(*kind, int(n)) for kind, n in zip(kinds, fewest, strict=True)]
        found, open_kinds = np.zeros(len(kind_of), bool), np.ones(len(kinds), bool)
        while open_kinds.any():
            needed = np.full((2, len(kinds)), -1)
            for kind in np.flatnonzero(open_kinds).tolist():
                needed[:, kind] = next(ways[kind], (-1, -1))
            tokens, more = needed[:, kind_of]
            found |= (tokens >= 0) & self.fits(kinds[0][1], tokens, more + characters)
            open_kinds &= needed[0] >= 0
            open_kinds &= np.bincount(kind_of[~found], minlength=len(kinds)) > 0
        return found

    def _completions(self, place: Place, counts: Counts, characters: int) -> Iterator[tuple[int, int]]:
        """Tokens and characters of completions behind a place, which may not be the shortest but for the last; none if
        what is lacking, behind so many characters at least, says without a search that there is no room."""
        left = self.lengths.less(counts.characters, counts.words, counts.sentences)
        lacking = self.machine.lacking(place.state, left.words.least, left.sentences.least - 1)
        enough = left.characters.has(lacking + characters)
        if not enough or not left.words.has(self.machine.least_words(place.state)):
            return
        for out in self._ways_out(place):
            rest = self.needed(out.behind, counts.with_more(0, 0, out.words, out.sentences))
            if rest is not None:
                yield out.tokens + len(rest.tokens), out.characters + rest.characters
        if (rest := self.needed(place, counts)) is not None:
            yield len(rest.tokens), rest.characters

    def _ways_out(self, place: Place) -> list[_WayOut]:
        """Of the word, or through a phrase that is begun; of a character that is not whole those that make it one."""
        if (found := self._outs.get(place)) is None:
            ways = [text.encode() for text in ("", *self.machine.begun(place.state))]
            texts = self._starts(place, closed=False) if place.left else ways
            found = [out for text in texts if (out := self._way_out(place, text + b" ")) is not None]
            if len(self._outs) > _MANY:
                self._outs.clear()
            self._outs[place] = found
        return found

    def _way_out(self, place: Place, text: bytes) -> _WayOut | None:
        whole = _whole(place.left + text)
        if whole is None or (after := self._read(place, whole[0])) is None or (tokens := self._spelled(text)) is None:
            return None
        return _WayOut(len(tokens), len(whole[0]), after.words, after.sentences, Place(after.state, b""))

    def _spelled(self, text: bytes) -> tuple[int, ...] | None:
        """Tokens of a text that may begin within a character; None if there are none."""
        start = text[: len(text) - len(text.lstrip(_CONTINUED))]
        if not all(bytes([byte]) in self._bytes for byte in start):
            return None
        return *(self._bytes[bytes([byte])] for byte in start), *self.alphabet.spelled(text[len(start) :].decode())

    def roomy(self, needed: Needed, counts: Counts) -> bool:
        """Whether any token may come without a look at what would be needed behind it."""
        characters, words, sentences = self.lengths
        missing = max(0, characters.least - counts.characters - needed.characters)
        tokens = len(needed.tokens) + int(self.pads(missing))
        return (
            self.room - counts.tokens > 2 * tokens + ROOM
            and characters.has(counts.characters + 2 * needed.characters + 8 * ROOM)
            and words.has(counts.words + needed.words + self.spare)
            and sentences.has(counts.sentences + needed.sentences + self.spare)
        )

    def accepts(self, place: Place, counts: Counts) -> bool:
        """Whether a text may end here."""
        sentences = counts.sentences + self.machine.open_sentence(place.state)
        found = zip(self.lengths, (counts.characters, counts.words, sentences), strict=True)
        within = self.tokens.holds(counts.tokens) and all(bounds.holds(count) for bounds, count in found)
        return within and not place.left and self.machine.accepts(place.state)


def _machine(goals: Sequence[Goal], alphabet: Alphabet, lengths: Lengths) -> Automaton:
    """What texts that read well are completed by; unless only others will do."""
    machine = Automaton(goals, alphabet, plain=True)
    try:
        plain = machine.completed(machine.start, lengths, Budget()) is not None
    except TooManyStates:
        plain = True
    return machine if plain else Automaton(goals, alphabet)


def _most(bounds: Bounds) -> int:
    return LONGEST if bounds.most is None else bounds.most


_ANY = Bounds(0, None)

_HOPED = 3
"""Characters that a token has at least on average, in common texts, unless all are shorter."""

_CONTINUED = bytes(range(0x80, 0xC0))
"""Bytes that go on with a character."""

_TAILS = (0x80, 0xA9, 0xB0, 0x85, 0x96)
"""Bytes that a character may end with: enough for one that no goal speaks of."""


def _barred(vocab_size: int, ends: Sequence[int | None], allowed: npt.NDArray[np.uint32] | None) -> list[int]:
    """Tokens that say nothing in a text."""
    found = [token for token in ends if token is not None]
    if allowed is None:
        return found
    bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")[:vocab_size]
    return [*found, *np.flatnonzero(bits == 0).tolist()]


def _whole(data: bytes) -> tuple[str, bytes] | None:
    """The text of bytes and those of a character that is not whole yet; None if that is no text."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as e:
        if e.reason != "unexpected end of data":
            return None
        return data[: e.start].decode(), data[e.start :]


class WishGuide:
    """As `fastlm.constraints.Guide`: which tokens may come in one text, and when it is done."""

    over = False

    def __init__(
        self,
        form: WishForm,
        allowed: npt.NDArray[np.uint32] | None,
        inner: Steps | None,
        place: Place,
        counts: Counts,
        forced: tuple[int, ...] = (),
        closed: bool = False,
        word: int = 0,
    ) -> None:
        self._form, self._allowed, self._inner = form, allowed, inner
        self._place, self._counts, self._forced = place, counts, forced
        self._closed, self._word = closed, word

    def copy(self) -> WishGuide:
        """Where it is now, for another text that goes on from here."""
        inner = None if self._inner is None else self._inner.copy()
        steps = self._place, self._counts, self._forced, self._closed, self._word
        return WishGuide(self._form, self._allowed, inner, *steps)

    def close_word(self) -> None:
        """No word character may come next."""
        self._closed = True

    @property
    def complete(self) -> bool:
        """Whether the text meets its goals if it ends here."""
        done = self._form.accepts(self._place, self._counts)
        return done and (self._inner is None or self._inner.complete)

    @property
    def ended(self) -> bool:
        """Whether the text stands at the end of a sentence."""
        return self._form.machine.ended(self._place.state)

    @property
    def fits(self) -> bool:
        """Whether there is room for what is still needed."""
        form, counts = self._form, self._counts
        needed = form.needed(self._place, counts, self._closed)
        return needed is not None and bool(form.fits(counts, len(needed.tokens), needed.characters))

    def allowed(self) -> npt.NDArray[np.uint32]:
        """A bit for each token that may come next."""
        mask = self._words_allow()
        if self._inner is not None:
            mask &= self._inner.allowed()[: len(mask)]
        if self.complete:
            mask |= self._form.ends
        return mask if self._allowed is None else mask & self._allowed

    def accept(self, token: int) -> str | None:
        """Notes a token; the reason to end if nothing more may come."""
        lifted = self._form.lifted(self._place)
        if lifted.behind[token] < 0:
            return None  # an end
        more = [int(part[token]) for part in (lifted.characters, lifted.words, lifted.sentences)]
        self._counts, self._closed = self._counts.with_more(1, *more), False
        self._place = lifted.places[lifted.behind[token]]
        self._word = (0 if more[1] else self._word) + more[0] if self._form.machine.in_word(self._place.state) else 0
        self._forced = self._forced[1:] if self._forced[:1] == (token,) else ()
        inner = None if self._inner is None else self._inner.accept(token)
        if inner is not None:
            return "stop" if self.complete else "unsatisfiable"
        return "stop" if self._full and self.complete else None

    @property
    def _full(self) -> bool:
        """Whether a length is used up, so that nothing of worth may follow."""
        lengths, counts = self._form.lengths, self._counts
        return (
            counts.characters == lengths.characters.most
            or counts.sentences == lengths.sentences.most
            or (counts.words == lengths.words.most and not self._form.machine.in_word(self._place.state))
        )

    def behind(self, token: int) -> tuple[str | None, bool]:
        """What `accept` would say, and whether the text would meet its goals then; nothing is noted."""
        other = self.copy()
        return other.accept(token), other.complete

    # ---- what words and lengths leave ------------------------------------------------------------------

    def _words_allow(self) -> npt.NDArray[np.uint32]:
        form, counts, lifted = self._form, self._counts, self._form.lifted(self._place)
        good = (lifted.behind >= 0) & (lifted.excluded == 0)
        if self._closed:
            good &= ~form.in_words
        for unit, bounds in form.lengths._asdict().items():
            if bounds.most is not None:
                more = lifted.sentences + lifted.opened if unit == "sentences" else getattr(lifted, unit)
                good &= getattr(counts, unit) + more <= bounds.most
        needed = form.needed(self._place, counts, self._closed)
        if needed is not None and not form.roomy(needed, counts):
            good = self._fitting(good, needed)
            if needed.words and counts.words + needed.words == form.lengths.words.most:
                good = self._going_on(good)
        return token_mask(len(good), np.flatnonzero(good).tolist())

    def _going_on(self, good: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Without tokens that put off the words which are all that may still come."""
        form = self._form
        if not form.machine.in_word(self._place.state):
            going = good & ~form.wordless
        elif self._word > form.long:
            going = good & ~form.in_words
        else:
            return good
        return going if going.any() else good

    def _fitting(self, good: npt.NDArray[np.bool_], needed: Needed) -> npt.NDArray[np.bool_]:
        """The tokens behind which what is needed has room; if there are none, the next of what is needed now."""
        form, counts, lifted = self._form, self._counts, self._form.lifted(self._place)
        tokens = np.flatnonzero(good)
        columns = np.stack([lifted.behind, lifted.words, lifted.sentences])[:, tokens]
        _, first, kind_of = np.unique(columns.T.astype(np.int64) @ _DIGITS, return_index=True, return_inverse=True)
        kinds = [
            (lifted.places[behind], counts.with_more(1, 0, words, sentences))
            for behind, words, sentences in columns[:, first].T.tolist()
        ]
        found = np.zeros_like(good)
        if kinds:
            found[tokens] = form.fits_behind(kinds, kind_of, lifted.characters[tokens])
        if not found.any() and not self.complete:
            missing = form.lengths.characters.least - counts.characters - needed.characters
            more = form.tokens.least - counts.tokens - len(needed.tokens)
            self._forced = self._forced or (*needed.tokens, *form.padding(max(0, missing), max(0, more)))
            found[list(self._forced[:1])] = True
        return found


class Continued:
    """A form of a text that has begun; ``closed``: its last word is whole, so that no word character may follow."""

    def __init__(self, form: WishForm, tokens: Sequence[int], closed: bool) -> None:
        self._form, self._tokens, self._closed = form, tokens, closed

    def guide(self, allowed: npt.NDArray[np.uint32] | None, ids: Sequence[int]) -> WishGuide:
        """For what follows. ids: what stands before the text."""
        guide = self._form.guide(allowed, ids)
        for token in self._tokens:
            guide.accept(token)
        if self._closed:
            guide.close_word()
        return guide
