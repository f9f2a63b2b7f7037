# SPDX-License-Identifier: Apache-2.0
"""The likeliest words that a text may go on with: token paths merged into words, best first.

A word is what stands between characters that are neither letters, digits nor apostrophes. Its probability is the sum
over all ways to write it in tokens, each with the probability that the word then ends. Paths are followed from the
likeliest down; what was not followed bounds what any word can still gain.
"""

from __future__ import annotations

import bisect
import heapq
import math
from array import array
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastlm import _engine
from fastlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

TOGETHER = 8
"""Paths that are followed at once: as many as the engine computes side by side."""

MOST_STEPS = 64
"""Tokens of all paths together after which a search gives what it has."""


class Suggestions(list[tuple[str, float]]):
    """Completions with their log-probabilities, the likeliest first.

    Attributes
    ----------
    bound : float
        Natural logarithm of the probability that was not followed: no word has more than this beyond what is told.
    exact : bool
        Whether these are the k likeliest words, in their order.
    """

    bound: float
    exact: bool


def _is_word(character: str) -> bool:
    return character.isalnum() or character in "'’"


class Words:
    """A tokenizer's tokens as parts of words."""

    def __init__(self, known: Tokenizer, size: int) -> None:
        self.known, self.size = known, size

    @cached_property
    def heads(self) -> list[bytes]:
        """What each token adds to a word that has begun, up to where the word ends."""
        return [piece[: self.end(piece)] for piece in self._pieces]

    @cached_property
    def ending(self) -> npt.NDArray[np.bool_]:
        """Tokens that end the word before them: they begin with what is no word, or are no text at all."""
        return np.array([not head for head in self.heads])

    @cached_property
    def single(self) -> bool:
        """Whether a token is never more than a character, so that a text has one way to be written."""
        return all(len(piece) <= 1 or len(piece.decode(errors="replace")) == 1 for piece in self._pieces)

    @cached_property
    def _sorted(self) -> tuple[list[bytes], list[int]]:
        """Texts in order, and their tokens."""
        ranked = sorted((piece, token) for token, piece in enumerate(self._pieces) if piece)
        return [piece for piece, _ in ranked], [token for _, token in ranked]

    def longer(self, text: bytes) -> list[int]:
        """Tokens that begin with a text and go on."""
        pieces, tokens = self._sorted
        first, last = bisect.bisect_right(pieces, text), bisect.bisect_left(pieces, text + b"\xff" * 64)
        return tokens[first:last]

    def covering(self, typed: bytes) -> list[int]:
        """Tokens that write a text, its beginning, or more."""
        pieces, tokens = self._sorted
        found = []
        for size in range(1, len(typed)):
            for at in range(bisect.bisect_left(pieces, typed[:size]), bisect.bisect_right(pieces, typed[:size])):
                found.append(tokens[at])
        first = bisect.bisect_left(pieces, typed)
        last = bisect.bisect_left(pieces, typed + b"\xff" * 64)
        return found + tokens[first:last]

    @property
    def _pieces(self) -> list[bytes]:
        return [*self.known.pieces, *[b""] * (self.size - self.known.vocab_size)]

    @staticmethod
    def end(piece: bytes) -> int:
        """Where the word ends in a piece; bytes of a broken character belong to it."""
        at = 0
        for character in piece.decode("utf-8", "surrogateescape"):
            if not _is_word(character) and not "\udc80" <= character <= "\udcff":
                break
            at += len(character.encode("utf-8", "surrogateescape"))
        return at


class _Path(NamedTuple):
    """A way to write the beginning of a word: ordered by falling probability."""

    minus: float  # log-probability
    order: int
    text: bytes  # of the word so far, what was typed left out
    typed: bytes  # what of the typed text is still to be written
    state: _engine.State  # before the token
    token: int


def suggest(model: Model, prefix: str, k: int) -> Suggestions:
    """See `Model.suggest`."""
    known = model._need_tokenizer()
    if not known.exact_pieces:
        raise ValueError("suggest needs tokens that are text as they are; this model joins its tokens with spaces")
    return _Search(model, model._words, k).run(prefix)


class _Search:
    def __init__(self, model: Model, words: Words, k: int) -> None:
        self.model, self.words, self.k = model, words, k
        self.paths: list[_Path] = []
        self.found: dict[bytes, float] = {}  # probability of a word, as far as its paths were followed
        self.open = 0.0  # probability of paths that were not
        self.steps = self.order = 0

    def run(self, prefix: str) -> Suggestions:
        begin = self._word_begin(prefix)
        ids = self.model._ids(prefix if self.words.single else prefix[:begin])
        typed = b"" if self.words.single else prefix[begin:].encode()
        with self.model._decoder() as decoder:
            state = self._state(decoder, ids)
            row = np.frombuffer(decoder.logprobs(state), np.float32)
            self._follow([(0.0, b"", typed, state)], row[None])
            while self.paths and self.steps < MOST_STEPS and -self.paths[0].minus > self._worst():
                self._step(decoder)
        return self._best()

    def _word_begin(self, prefix: str) -> int:
        """Where the word begins that is being typed, with the space before it: tokens often begin with one."""
        begin = len(prefix)
        while begin and _is_word(prefix[begin - 1]):
            begin -= 1
        return begin - 1 if begin and prefix[begin - 1] == " " else begin

    def _state(self, decoder: _engine.Decoder, ids: array[int]) -> _engine.State:
        """After the tokens; what was read before is not read again."""
        cache, state, length = self.model._prefixes, _engine.State(self.model._engine), 0
        if (found := cache.find(ids)) is not None:
            state, length = found
        decoder.feed(state, ids[length:])
        cache.keep(ids, state)
        return state

    def _worst(self) -> float:
        """Log-probability of the least likely of the k best words so far."""
        if len(self.found) < self.k:
            return -math.inf
        return math.log(max(heapq.nlargest(self.k, self.found.values())[-1], 1e-300))

    def _step(self, decoder: _engine.Decoder) -> None:
        """Follows the likeliest paths."""
        worst = self._worst()
        chosen: list[_Path] = []
        while self.paths and len(chosen) < TOGETHER and -self.paths[0].minus > worst:
            chosen.append(heapq.heappop(self.paths))
        states = [path.state.copy() for path in chosen]
        rows = decoder.advance(states, array("i", [path.token for path in chosen]))
        self.steps += len(chosen)
        self.open -= sum(math.exp(-path.minus) for path in chosen)
        ends = [(-path.minus, path.text, path.typed, state) for path, state in zip(chosen, states, strict=True)]
        self._follow(ends, np.frombuffer(rows, np.float32).reshape(len(chosen), -1))

    def _follow(self, ends: list[tuple[float, bytes, bytes, _engine.State]], rows: npt.NDArray[np.float32]) -> None:
        """Adds up words that end here, and notes how paths may go on. A row holds what may come behind each end."""
        logprobs = rows.astype(np.float64) + np.array([[end[0]] for end in ends])
        p = np.exp(logprobs)
        ended = p @ self.words.ending
        for (_, text, typed, _), mass in zip(ends, ended.tolist(), strict=True):
            if not typed:
                self._add(text, mass)
        least = math.exp(self._worst())
        for place, (_, text, typed, state) in enumerate(ends):
            row = logprobs[place]
            if typed:
                tokens = self.words.covering(typed)
            else:
                going_on = np.where(self.words.ending, 0.0, p[place])
                tokens = np.flatnonzero(going_on > least).tolist()
                if len(tokens) > MOST_STEPS:  # no more of them will ever be followed
                    tokens = np.argpartition(-going_on, MOST_STEPS)[:MOST_STEPS].tolist()
                self.open += float(going_on.sum() - going_on[tokens].sum())
            for token in tokens:
                self._go_on(float(row[token]), text, typed, state, token)

    def _go_on(self, logprob: float, text: bytes, typed: bytes, state: _engine.State, token: int) -> None:
        piece = self.words.known.pieces[token]
        behind = piece[len(typed) :]
        head = behind[: Words.end(behind)] if typed else self.words.heads[token]
        if len(head) < len(behind):  # the word ends inside the token
            self._add(text + head, math.exp(logprob))
            return
        self.order += 1
        heapq.heappush(self.paths, _Path(-logprob, self.order, text + head, typed[len(piece) :], state, token))
        self.open += math.exp(logprob)

    def _add(self, word: bytes, probability: float) -> None:
        self.found[word] = self.found.get(word, 0.0) + probability

    def _best(self) -> Suggestions:
        ranked = sorted(self.found.items(), key=lambda one: (-one[1], one[0]))
        whole = [(text, p) for text, p in ranked if p > 0 and _readable(text)]
        total = sum(self.found.values()) + max(self.open, 0.0)
        best = Suggestions((text.decode(), math.log(p / total)) for text, p in whole[: self.k])
        least = whole[self.k - 1][1] if len(whole) >= self.k else 0.0
        top = math.exp(-self.paths[0].minus) if self.paths else 0.0
        rest = top if self.words.single else max(self.open, 0.0)  # a word has one path, or several
        gaps = [a[1] - b[1] for a, b in pairwise(whole[: self.k + 1])]
        best.bound = math.log(max(self.open, 1e-300) / total)
        best.exact = least >= rest and (self.words.single or all(gap >= rest for gap in gaps))
        return best


def _readable(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
