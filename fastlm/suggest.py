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
import re
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from fastlm import _engine
from fastlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

TOGETHER = 8
"""Paths that are followed at once: as many as the engine computes side by side."""

MOST_STEPS = 48
"""Tokens of all paths together after which a search gives what it has."""

MOST_STEPS_OF_TYPOS = 96
"""The same, where there may be typos."""

EAGER = 1.5
"""Where there may be typos, for each byte of what was typed that a path has dealt with: so much sooner is it followed.
Else short beginnings, which are likelier than any whole word, would take all steps."""

TYPO = math.log(0.01)
"""Natural logarithm of how likely a typo is taken to be, for each letter that is wrong, missing, too many, or has
changed places with its neighbour."""


class Suggestions(list[tuple[str, float]]):
    """Completions with their log-probabilities, the likeliest first.

    Attributes
    ----------
    bound : float
        Natural logarithm of the probability that was not followed: a word may have so much more than what is told of
        it, and one that is not here so much more than the last one that is.
    exact : bool
        Whether these are the k likeliest words, in their order.
    replaces : int
        So many characters at the end of the prefix give way to a completion: those of the word that was begun, if
        typos are looked for; else none.
    """

    bound: float
    exact: bool
    replaces: int = 0


_WORD = re.compile(r"(?:[^\W_]|['’\udc80-\udcff])*")
"""What a word is made of; surrogates stand for bytes of a broken character."""


def _is_word(character: str) -> bool:
    return character.isalnum() or character in "'’"


def _end(piece: bytes) -> int:
    """Where the word ends in a piece; bytes of a broken character belong to it."""
    found = _WORD.match(piece.decode("utf-8", "surrogateescape"))
    return len(found[0].encode("utf-8", "surrogateescape")) if found else 0


class Words:
    """A tokenizer's tokens as parts of words."""

    def __init__(self, known: Tokenizer, size: int) -> None:
        self.known, self.size = known, size

    @cached_property
    def heads(self) -> list[bytes]:
        """What each token adds to a word that has begun, up to where the word ends."""
        return [piece[: _end(piece)] for piece in self._pieces]

    @cached_property
    def ends(self) -> list[int]:
        """Where in each token the word ends that it may begin with, perhaps behind a space."""
        return [1 + _end(piece[1:]) if piece[:1] == b" " else _end(piece) for piece in self._pieces]

    @cached_property
    def ending(self) -> bytes:
        """For each token whether it ends the word before it: it begins with what is no word, or is no text at all."""
        return bytes(not head for head in self.heads)

    @cached_property
    def single(self) -> bool:
        """Whether each token is a character, or each a byte, so that a text has one way to be written."""
        pieces = [piece for piece in self._pieces if piece]
        bytes_only = all(len(piece) == 1 for piece in pieces)
        characters = all(len(piece.decode("utf-8", "surrogateescape")) == 1 for piece in pieces)
        broken = any("\udc80" <= piece.decode("utf-8", "surrogateescape")[0] <= "\udcff" for piece in pieces)
        return len({*pieces}) == len(pieces) and (bytes_only or (characters and not broken))

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

    @cached_property
    def tries(self) -> tuple[_Node, _Node]:
        """Heads by their bytes: of tokens within a word, and of those that begin one behind a space."""
        within, behind_space = _Node(), _Node()
        for token, piece in enumerate(self._pieces):
            if head := self.heads[token]:
                within.add(head, token, len(head) < len(piece))
            elif piece[:1] == b" ":
                behind_space.add(piece[1 : self.ends[token]], token, self.ends[token] < len(piece))
        return within, behind_space

    @cached_property
    def _pieces(self) -> list[bytes]:
        return [*self.known.pieces, *[b""] * (self.size - self.known.vocab_size)]


class _Node:
    """Of a trie: tokens whose heads end here, with whether the word ends there too."""

    __slots__ = ("below", "tokens")

    def __init__(self) -> None:
        self.below: dict[int, _Node] = {}
        self.tokens: list[tuple[int, bool]] = []

    def add(self, head: bytes, token: int, ends: bool) -> None:
        node = self
        for byte in head:
            node = node.below.setdefault(byte, _Node())
        node.tokens.append((token, ends))


# ---- what was typed ----------------------------------------------------------------------------------------


class _Way(NamedTuple):
    """A token by which a word may go on that was begun. head: what it adds to the word; typed: what must still come,
    None: anything may; ends: whether the word ends inside of it; cost: log-probability of the typos, at best."""

    token: int
    head: bytes
    typed: _Typed | None
    ends: bool
    cost: float


class _Exactly:
    """The rest of what was typed, as it is. Words are what comes behind."""

    def __init__(self, left: bytes) -> None:
        self._left = left

    cost_of_ending = None  # it is not all there

    def ways(self, words: Words, root: int) -> Iterator[_Way]:
        pieces, ends, size = words.known.pieces, words.ends, len(self._left)
        for token in words.covering(self._left):
            piece, end = pieces[token], ends[token]
            if left := self._left[len(piece) :]:
                yield _Way(token, b"", _Exactly(left), False, 0.0)
            else:
                yield _Way(token, piece[size:end], None, end < len(piece), 0.0)


class _Nearly:
    """The bytes of a word that was begun, with a few typos: what is written so far by the distances between it and the
    beginnings of what was typed (optimal string alignment: Damerau 1964, Levenshtein 1965). Only beginnings that are at
    most so many bytes longer or shorter can be near enough."""

    __slots__ = ("_before", "_best", "_last", "_most", "_row", "_typed", "size")

    def __init__(self, typed: bytes, most: int) -> None:
        self._typed, self._most, self.size, self._last = typed, most, 0, -1
        # Of the beginnings of size - most … size + most bytes; behind both ends what is never near enough.
        far = [most + 1] * most
        self._row = [*far, *range(min(most, len(typed)) + 1), *far][: 2 * most + 1]
        self._row += [most + 1] * (2 * most + 1 - len(self._row))
        self._before = self._row
        self._best = self._row[most + len(typed)] if len(typed) <= most else most + 1

    def _behind(self, byte: int) -> _Nearly:
        row, before, typed, most = self._row, self._before, self._typed, self._most
        first = self.size + 1 - most  # the shortest beginning
        new: list[int] = []
        for place in range(2 * most + 1):
            j, least = first + place, most + 1
            if 0 <= j <= len(typed):
                left = new[-1] if place else most + 1
                above = row[place + 1] if place < 2 * most else most + 1
                least = min(least, above + 1, left + 1)
                if j:
                    least = min(least, row[place] + (byte != typed[j - 1]))
                if j > 1 and byte == typed[j - 2] and self._last == typed[j - 1]:
                    least = min(least, before[place] + 1)
            new.append(least)
        found = object.__new__(_Nearly)
        found._typed, found._most, found.size = typed, most, self.size + 1
        found._row, found._before, found._last = new, row, byte
        end = len(typed) - first
        found._best = min(self._best, new[end]) if 0 <= end <= 2 * most else self._best
        return found

    @property
    def cost_of_ending(self) -> float | None:
        return TYPO * self._best if self._best <= self._most else None

    def ways(self, words: Words, root: int) -> Iterator[_Way]:
        yield from self._below(words.tries[root], b"")

    def _below(self, node: _Node, head: bytes) -> Iterator[_Way]:
        near = min(self._row)
        if min(near, self._best) > self._most:
            return
        over = near > self._most  # nothing that comes can change the distance
        for token, ends in node.tokens:
            if not ends or self._best <= self._most:
                cost = TYPO * (self._best if ends or over else min(near, self._best))
                yield _Way(token, head, None if over or ends else self, ends, cost)
        for byte, child in node.below.items():
            yield from (self if over else self._behind(byte))._below(child, head + bytes([byte]))


_Typed: TypeAlias = "_Exactly | _Nearly"


# ---- the search --------------------------------------------------------------------------------------------


class _Branch(NamedTuple):
    """What may follow a beginning of a word: the likeliest first."""

    text: bytes  # of the word so far
    state: _engine.State  # before the tokens
    ways: Sequence[_Way] | None  # None: any
    tokens: Sequence[int]
    logprobs: Sequence[float]  # of the tokens, and of the typos at best if there are ways
    given: float  # log-probability of what is before
    cost: float  # what of that is for typos, if ways is None
    unlisted: float  # probability of other tokens
    early: Sequence[float] | float  # what is added to a token's log-probability to say when it is followed


class _Step(NamedTuple):
    """A beginning of a word that is to be followed."""

    total: float  # its log-probability
    cost: float  # that of its typos, at best
    text: bytes
    typed: _Typed | None
    state: _engine.State
    token: int


def suggest(model: Model, prefix: str, k: int, typos: int) -> Suggestions:
    """See `Model.suggest`."""
    known = model._need_tokenizer()
    if not known.exact_pieces:
        raise ValueError("suggest needs tokens that are text as they are; this model joins its tokens with spaces")
    return _Search(model, model._words, k).run(prefix, typos)


class _Search:
    def __init__(self, model: Model, words: Words, k: int) -> None:
        self.model, self.words, self.k = model, words, k
        self._reset()

    def _reset(self) -> None:
        # The next way of each branch, and the probability of this and all that follow it.
        self.heap: list[tuple[float, int, _Branch, int, float]] = []
        self.found: dict[bytes, float] = {}  # probability of a word, as far as its paths were followed
        self.unlisted = 0.0  # probability of what branches do not list,
        self.beyond = 0.0  # and the most that a path has which goes on so
        self.steps = self.order = 0
        self.early = 0.0  # of what has dealt with all that was typed

    def run(self, prefix: str, typos: int) -> Suggestions:
        lead = self.words.known.lead
        prefix = prefix if prefix.startswith(lead) else lead + prefix
        begin = self._word_begin(prefix)
        behind_space = prefix[begin : begin + 1] == " "
        word = prefix[begin + behind_space :]
        if not (typos and word):
            whole = self.words.single
            typed = _Exactly(prefix[begin:].encode()) if begin < len(prefix) and not whole else None
            self._search(prefix if whole else prefix[:begin], typed)
            return self._best()
        # What is spelt as it was typed is looked for by itself: typos have many more ways.
        self._search(prefix[:begin], _Exactly(prefix[begin:].encode()))
        spelt = {word.encode() + behind: p for behind, p in self.found.items()}
        self._reset()
        self.early = EAGER * len(word.encode())
        self._search(prefix[:begin], _Nearly(word.encode(), typos), int(behind_space), MOST_STEPS_OF_TYPOS)
        for text, p in spelt.items():
            self.found[text] = max(self.found.get(text, 0.0), p)
        best = self._best()
        best.replaces = len(word)
        return best

    def _search(self, before: str, typed: _Typed | None, root: int = 0, most: int = MOST_STEPS) -> None:
        """Looks for words behind a text, with so many steps. root: of the tries."""
        ids = self.model._ids(before) if before or self.model.bos is not None else array("i")
        with self.model._decoder() as decoder:
            self.decoder, self.root = decoder, root
            self._follow([_Step(0.0, 0.0, b"", typed, self._state(ids), -1)])
            while self.steps < most and self._likeliest() > (worst := self._worst()):
                self._step(worst)

    def _likeliest(self) -> float:
        """Log-probability of the likeliest path that is not followed yet."""
        if not self.early:
            return -self.heap[0][0] if self.heap else -math.inf
        # Those of a branch are not in this order then.
        ahead = (branch.given + max(branch.logprobs[rank:]) for _, _, branch, rank, _ in self.heap)
        return max(ahead, default=-math.inf)

    def _word_begin(self, prefix: str) -> int:
        """Where the word begins that is being typed, with the space before it: tokens often begin with one."""
        begin = len(prefix)
        while begin and _is_word(prefix[begin - 1]):
            begin -= 1
        return begin - 1 if begin and prefix[begin - 1] == " " else begin

    def _state(self, ids: array[int]) -> _engine.State:
        """After the tokens; what was read before is not read again."""
        cache, state, length = self.model._prefixes, _engine.State(self.model._engine), 0
        if (found := cache.find(ids)) is not None:
            state, length = found
        if length < len(ids):
            self.decoder.feed(state, ids[length:])
            cache.keep(ids, state)
        return state

    def _worst(self) -> float:
        """Log-probability of the least likely of the k best words so far."""
        if len(self.found) < self.k:
            return -math.inf
        return math.log(max(sorted(self.found.values())[-self.k], 1e-300))

    def _step(self, worst: float) -> None:
        """Follows the likeliest paths."""
        chosen: list[_Step] = []
        while self.heap and len(chosen) < TOGETHER and (self.early or -self.heap[0][0] > worst):
            _, _, branch, rank, left = heapq.heappop(self.heap)
            total = branch.given + branch.logprobs[rank]
            self._offer(branch, rank + 1, max(0.0, left - math.exp(total)))
            if total <= worst:
                self.unlisted += math.exp(total)
            elif (step := self._taken(total, branch, rank)) is not None:
                chosen.append(step)
        if chosen:
            self.steps += len(chosen)
            self._follow(chosen)

    def _offer(self, branch: _Branch, rank: int, left: float) -> None:
        if rank < len(branch.tokens):
            self.order += 1
            early = branch.early if isinstance(branch.early, float) else branch.early[rank]
            key = -branch.given - branch.logprobs[rank] - early
            heapq.heappush(self.heap, (key, self.order, branch, rank, left))
        elif branch.unlisted:
            least = branch.logprobs[-1] if branch.logprobs else 0.0
            self.beyond = max(self.beyond, math.exp(branch.given + least))

    def _taken(self, total: float, branch: _Branch, rank: int) -> _Step | None:
        """A way of a branch: a word if it ends there, else what is to be followed."""
        token = branch.tokens[rank]
        if branch.ways is None:
            head, piece = self.words.heads[token], self.words.known.pieces[token]
            text, typed, ends, cost = branch.text + head, None, len(head) < len(piece), branch.cost
        else:
            _, head, typed, ends, cost = branch.ways[rank]
            text = branch.text + head
        if ends:
            self._add(text, math.exp(total))
            return None
        return _Step(total - cost, cost, text, typed, branch.state.copy(), token)

    def _follow(self, steps: list[_Step]) -> None:
        """Adds up words that end behind these, and notes how they may go on."""
        free = [step for step in steps if step.typed is None]
        begun = [step for step in steps if step.typed is not None]
        if free:
            said = self.decoder.follow(*_arguments(free), self.words.ending, MOST_STEPS)
            for step, (ended, listed, unlisted, tokens, logprobs) in zip(free, said, strict=True):
                given = step.total + step.cost
                p = math.exp(given)
                self._add(step.text, ended * p)
                self._begin(
                    _Branch(step.text, step.state, None, tokens, logprobs, given, step.cost, unlisted * p, self.early),
                    listed * p,
                )
        if begun:
            self._follow_typed(begun)

    def _follow_typed(self, steps: list[_Step]) -> None:
        states, tokens = _arguments(steps)
        rows = self.decoder.logprobs(states[0]) if tokens is None else self.decoder.advance(states, tokens)
        for step, row in zip(steps, np.frombuffer(rows, np.float32).reshape(len(steps), -1), strict=True):
            self._begin_typed(step, row)

    def _begin_typed(self, step: _Step, row: npt.NDArray[np.float32]) -> None:
        """row: log-probabilities of what may come."""
        assert step.typed is not None
        if step.text and (cost := step.typed.cost_of_ending) is not None:
            ended = np.exp(row.astype(np.float64)) @ np.frombuffer(self.words.ending, np.uint8)
            self._add(step.text, float(ended) * math.exp(step.total + cost))
        ways = list(step.typed.ways(self.words, self.root if step.token < 0 else 0))
        logprobs = row[[way.token for way in ways]] + np.array([way.cost for way in ways])
        early = np.array([self._early(way.typed) for way in ways])
        p = np.exp(logprobs + step.total)
        order = np.argsort(-logprobs - early, kind="stable")
        listed, unlisted = order[:MOST_STEPS], float(p[order[MOST_STEPS:]].sum())
        branch = _Branch(
            step.text,
            step.state,
            [ways[place] for place in listed],
            [ways[place].token for place in listed],
            logprobs[listed].tolist(),
            step.total,
            0.0,
            unlisted,
            early[listed].tolist(),
        )
        self._begin(branch, float(p[listed].sum()))

    def _early(self, typed: _Typed | None) -> float:
        return min(self.early, EAGER * typed.size) if isinstance(typed, _Nearly) else self.early

    def _begin(self, branch: _Branch, listed: float) -> None:
        self.unlisted += branch.unlisted
        self._offer(branch, 0, listed)

    def _add(self, word: bytes, probability: float) -> None:
        self.found[word] = self.found.get(word, 0.0) + probability

    def _best(self) -> Suggestions:
        ranked = sorted(self.found.items(), key=itemgetter(1), reverse=True)
        whole = [*islice(((text, p) for text, p in ranked if p > 0 and _readable(text)), self.k + 1)]
        open_ = self.unlisted + sum(left for *_, left in self.heap)
        known = sum(self.found.values())
        total = known + open_
        # Of typos most of what is open leads nowhere: there words are weighed against each other alone.
        whole_mass = known if self.early else total
        best = Suggestions((text.decode(), math.log(p / whole_mass)) for text, p in whole[: self.k])
        least = whole[self.k - 1][1] if len(whole) >= self.k else 0.0
        path = max(self.beyond, math.exp(self._likeliest()))
        one_path = self.words.single and not self.early  # of a word; and paths were followed as they rank
        rest = path if one_path else open_
        gaps = [a[1] - b[1] for a, b in pairwise(whole[: self.k + 1])]
        best.bound = math.log(max(open_, 1e-300) / total) if total else 0.0
        best.exact = bool(whole) and least >= rest and (one_path or all(gap >= rest for gap in gaps))
        return best


def _arguments(steps: Sequence[_Step]) -> tuple[list[_engine.State], array[int] | None]:
    """What is to be read; of the first step nothing, as its state has read all."""
    tokens = array("i", [step.token for step in steps])
    return [step.state for step in steps], None if tokens[0] < 0 else tokens


def _readable(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
