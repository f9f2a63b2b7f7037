# SPDX-License-Identifier: Apache-2.0
"""Which tokens may come so that a text meets its hard goals before its room is used up.

The automaton of words and lengths is read a token at a time: what each of the vocabulary's tokens does in a state is
found once and kept. While there is room, all tokens may come that lead to no dead end by themselves. Where it is tight,
only those may behind which the shortest completion still fits, and at last that completion itself. Limits on words and
sentences are only looked at as they are reached.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastlm.constraints import Shape, Steps, token_mask
from fastlm.controls import remember
from fastlm.goals.automaton import Automaton, Bounds, Budget, Lengths, State
from fastlm.goals.kinds import Goal
from fastlm.goals.texts import is_word

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

KEPT = 512
"""Places of which it is kept what each token does there: 24 bytes a token."""

ROOM = 8
"""Tokens beyond twice what is needed that count as room: more than one token can undo of a word."""


_MANY = 50_000  # answers that are kept


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
    """

    def __init__(self, model: Model, goals: Sequence[Goal], ends: Sequence[int], most: int, form: Shape | None) -> None:
        known = model._need_tokenizer()
        if not known.exact_pieces:
            raise ValueError(
                "goals need tokens that are text as they are (characters, bytes, byte-level BPE); this model's "
                "tokenizer joins its tokens with spaces"
            )
        self.machine, self.form = Automaton(goals), form
        self.lengths, tokens = Lengths.of(goals), Bounds.of(goals, "tokens")
        self.tokens = Bounds(tokens.least, most if tokens.most is None else min(most, tokens.most))
        self.encode = model.encode
        self.room = self.tokens.most or 0
        unknown = [] if known.unknown is None else [known.unknown]
        self._pieces = [b"" if token in (*ends, *unknown) else piece for token, piece in enumerate(known.pieces)]
        self._pieces += [b""] * (model.vocab_size - len(self._pieces))
        self.ends = token_mask(model.vocab_size, ends)
        self.in_words = np.array([is_word(piece.decode("utf-8", "ignore")[:1]) for piece in self._pieces])
        """Tokens that begin with a word character."""
        self._lifted: dict[Place, Lifted] = {}
        self._needed: dict[tuple[State, Lengths], str | None] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()  # the automaton numbers its states as they are met

    def guide(self, allowed: npt.NDArray[np.uint32] | None) -> WishGuide:
        """For one text. allowed: a bit for each token that may come at all."""
        inner = None if self.form is None else self.form.guide(allowed)
        return WishGuide(self, allowed, inner, Place(self.machine.start, b""), Counts())

    def lifted(self, place: Place) -> Lifted:
        """What each token does."""
        if (found := self._lifted.get(place)) is None:
            with self._lock:
                found = self._lift(place)
            remember(self._lifted, KEPT, place, found)
        return found

    def _lift(self, place: Place) -> Lifted:
        numbers: dict[Place, int] = {}
        rows = np.full((6, len(self._pieces)), -1, np.int32)
        known: dict[str, tuple[State, int, int] | None] = {"": (place.state, 0, 0)}
        for token, piece in enumerate(self._pieces):
            if not piece or (text := _whole(place.left + piece)) is None:
                continue
            if (found := self._read(known, text[0])) is None:
                continue
            state, words, sentences = found
            number = numbers.setdefault(Place(state, text[1]), len(numbers))
            flags = self.machine.open_sentence(state), self.machine.says_excluded(state)
            rows[:, token] = number, len(text[0]), words, sentences, *flags
        return Lifted(list(numbers), *rows)

    def _read(self, known: dict[str, tuple[State, int, int] | None], text: str) -> tuple[State, int, int] | None:
        """What a text does; of texts with one beginning that is looked at once."""
        if text not in known:
            before = self._read(known, text[:-1])
            step = None if before is None else self.machine.step(before[0], text[-1])
            known[text] = (
                None
                if before is None or step is None
                else (step.state, before[1] + step.words, before[2] + step.sentences)
            )
        return known[text]

    def needed(self, place: Place, counts: Counts) -> str | None:
        """The shortest completion, whatever the room; None if there is none."""
        left = self.lengths.less(counts.characters, counts.words, counts.sentences)
        left = left._replace(characters=left.characters._replace(most=None))
        key = place.state, left
        with self._lock:
            if key not in self._needed:
                if len(self._needed) > _MANY:
                    self._needed.clear()
                self._needed[key] = self.machine.completed(*key, Budget())
            return self._needed[key]

    def fits(self, place: Place, counts: Counts) -> bool:
        """Whether there is room for what a text still needs."""
        if (needed := self.needed(place, counts)) is None:
            return False
        full = self.lengths.characters.most
        within = full is None or counts.characters + len(needed) <= full
        return within and counts.tokens + self.size(needed) <= self.room

    def size(self, text: str) -> int:
        """Tokens of a text."""
        if (found := self._sizes.get(text)) is None:
            if len(self._sizes) > _MANY:
                self._sizes.clear()
            found = self._sizes[text] = len(self.encode(text))
        return found

    def accepts(self, place: Place, counts: Counts) -> bool:
        """Whether a text may end here."""
        sentences = counts.sentences + self.machine.open_sentence(place.state)
        found = zip(self.lengths, (counts.characters, counts.words, sentences), strict=True)
        within = self.tokens.holds(counts.tokens) and all(bounds.holds(count) for bounds, count in found)
        return within and not place.left and self.machine.accepts(place.state)


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
    ) -> None:
        self._form, self._allowed, self._inner = form, allowed, inner
        self._place, self._counts, self._forced, self._closed = place, counts, forced, closed

    def copy(self) -> WishGuide:
        """Where it is now, for another text that goes on from here."""
        inner = None if self._inner is None else self._inner.copy()
        return WishGuide(self._form, self._allowed, inner, self._place, self._counts, self._forced, self._closed)

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
        return self._form.fits(self._place, self._counts)

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
        more = (int(part[token]) for part in (lifted.characters, lifted.words, lifted.sentences))
        self._counts, self._closed = self._counts.with_more(1, *more), False
        self._place = lifted.places[lifted.behind[token]]
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
        needed = form.needed(self._place, counts)
        if needed is not None and not self._roomy(needed):
            good = self._fitting(good, needed)
        return token_mask(len(good), np.flatnonzero(good).tolist())

    def _roomy(self, needed: str) -> bool:
        """Whether any token may come without a look at what would be needed behind it."""
        tokens, characters = self._form.size(needed), self._form.lengths.characters.most
        if self._form.room - self._counts.tokens <= 2 * tokens + ROOM:
            return False
        room = len(needed) + 4 * ROOM
        return characters is None or characters - self._counts.characters > 2 * room

    def _fits_behind(self, behind: int, characters: int, words: int, sentences: int) -> bool:
        """Whether there is room for what would be needed behind a token."""
        place = self._form.lifted(self._place).places[behind]
        return self._form.fits(place, self._counts.with_more(1, characters, words, sentences))

    def _fitting(self, good: npt.NDArray[np.bool_], needed: str) -> npt.NDArray[np.bool_]:
        """The tokens behind which what is needed has room; if there are none, the next of what is needed now."""
        form, lifted = self._form, self._form.lifted(self._place)
        tokens = np.flatnonzero(good)
        kinds = np.stack([lifted.behind, lifted.characters, lifted.words, lifted.sentences])[:, tokens]
        kinds, kind_of = np.unique(kinds, axis=1, return_inverse=True)
        fits = np.array([self._fits_behind(*kind) for kind in kinds.T.tolist()], bool)
        found = np.zeros_like(good)
        found[tokens] = fits[kind_of.ravel()] if len(tokens) else False
        if not found.any():
            self._forced = self._forced or tuple(form.encode(needed))
            found[list(self._forced[:1])] = True
        return found


class Continued:
    """A form of a text that has begun; ``closed``: its last word is whole, so that no word character may follow."""

    def __init__(self, form: WishForm, tokens: Sequence[int], closed: bool) -> None:
        self._form, self._tokens, self._closed = form, tokens, closed

    def guide(self, allowed: npt.NDArray[np.uint32] | None) -> WishGuide:
        """For what follows."""
        guide = self._form.guide(allowed)
        for token in self._tokens:
            guide.accept(token)
        if self._closed:
            guide.close_word()
        return guide
