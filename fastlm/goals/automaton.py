# SPDX-License-Identifier: Apache-2.0
"""Words, phrases and lengths as one automaton over characters: whether a text can be as is asked, and the shortest.

Characters that no goal tells apart are one symbol, so that the automaton has as few transitions as the goals need. What
was said of each phrase, and where in a word and in a sentence the text stands, is its state; how many characters, words
and sentences there were is counted beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from heapq import heappop, heappush
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from fastlm.goals.kinds import Goal, Include, Length, Words, words_of
from fastlm.goals.texts import (
    APOSTROPHES,
    CLOSERS,
    ENDS,
    count_phrase,
    count_words,
    fold,
    folded,
    is_word,
    word_starts,
)

MOST_STEPS = 1_000_000
"""Of phrases behind characters, that are looked at for one question, all of its parts together, before nothing is said:
about two seconds."""

FAR = 24
"""Words and sentences that are counted one by one; more of them are known to take as much room each."""


class Symbol(NamedTuple):
    """Characters that are alike to the goals: one of them, and what it is."""

    character: str
    word: bool
    space: bool
    end: bool
    closer: bool
    apostrophe: bool


def _symbol(character: str) -> Symbol:
    groups = (character in group for group in (ENDS, CLOSERS, APOSTROPHES))
    return Symbol(character, is_word(character), character.isspace(), *groups)


class Phrase:
    """How much of a phrase was said: a state is the places reached in it, whether a word character came before, and
    whether it was said. Dead or done states say so."""

    def __init__(self, phrase: str, case: bool) -> None:
        self.said = phrase if case else folded(phrase)
        self._case = case
        self._first, self._last = is_word(phrase[0]), is_word(phrase[-1])
        self.characters = frozenset(self.said.replace(" ", ""))

    def start(self) -> frozenset[int]:
        """Before a text."""
        return frozenset([FREE])

    def after(self, state: frozenset[int], symbol: Symbol) -> frozenset[int]:
        """A state after a character: `DONE` once the phrase was said as a whole."""
        size, said = len(self.said), self.said
        if state == DONE or (size in state and not (self._last and symbol.word)):
            return DONE
        found = set() if symbol.word else {FREE}
        character = symbol.character if self._case else fold(symbol.character)
        for at in state - {size}:
            at = max(at, 0)
            if said[at] == " ":
                found |= {at, at + 1} if symbol.space else set()
            elif said[at] == character:
                found.add(at + 1)
        if not self._first and said[0] == character:  # a mark may stand anywhere
            found.add(1)
        return frozenset(found)

    def at_end(self, state: frozenset[int]) -> bool:
        """Whether the phrase is in a text that ends here."""
        return state == DONE or len(self.said) in state


def _within(phrase: Phrase, other: Phrase) -> bool:
    """Whether saying the other may say a phrase, too."""
    return bool(count_phrase(other.said, phrase.said, case=False) or count_phrase(other.said, phrase.said, case=True))


def _parts(phrase: str) -> list[str]:
    """Word characters in a row."""
    return re.findall(r"\w+", folded(phrase))


_COMMON = "abcdefghijklmnopqrstuvwxyz0123456789 .!?\u2026)\"]\u201d\u00bb'\u2019-,;:\n"
"""Characters that stand for those of their kind, if no goal speaks of them: the first of each kind that does."""

_RARE = "".join(map(chr, range(0xC0, 0x250)))
"""Letters, for goals that speak of all common ones."""

_MANY = 50_000  # answers that are kept

FREE = -1  # no word character came before: a phrase may begin
DONE = frozenset([-2])


State: TypeAlias = "tuple[int, ...]"


class Step(NamedTuple):
    """Where a character leads: the state, and the words and sentences that it adds."""

    state: State
    words: int
    sentences: int

    def then(self, step: Step) -> Step:
        """Where both lead, one behind the other."""
        return Step(step.state, self.words + step.words, self.sentences + step.sentences)


# A word goes on, or does so if a word character follows; the sentence has a word character; its end mark was there.
IN_WORD, JOINT, IN_SENTENCE, ENDED = 1, 2, 4, 8


class Bounds(NamedTuple):
    """Of a length, both included; ``most`` may be None."""

    least: int
    most: int | None

    @classmethod
    def of(cls, goals: Sequence[Goal], unit: str) -> Bounds:
        """What all goals ask for together."""
        asked = [goal for goal in goals if isinstance(goal, Length) and goal.unit == unit]
        most = [goal.max for goal in asked if goal.max is not None]
        return cls(max((goal.min for goal in asked), default=0), min(most, default=None))

    @property
    def empty(self) -> bool:
        """Whether no length is within."""
        return self.most is not None and self.most < self.least

    def less(self, count: int) -> Bounds:
        """For what is left when so many are taken for granted."""
        return Bounds(max(0, self.least - count), None if self.most is None else self.most - count)

    def holds(self, count: int) -> bool:
        """Whether a count is within."""
        return self.least <= count and (self.most is None or count <= self.most)

    def has(self, count: int) -> bool:
        """Whether there is room for so much."""
        return self.most is None or count <= self.most

    def counted(self, count: int) -> int | None:
        """A count as far as it matters; None if it is too large."""
        if self.most is None:
            return min(count, self.least)
        return count if count <= self.most else None


class Lengths(NamedTuple):
    """Bounds of a text's lengths."""

    characters: Bounds
    words: Bounds
    sentences: Bounds

    @classmethod
    def of(cls, goals: Sequence[Goal]) -> Lengths:
        """What all goals ask for together."""
        return cls(*(Bounds.of(goals, unit) for unit in cls._fields))

    def less(self, characters: int, words: int, sentences: int) -> Lengths:
        """For what is left when so much is there."""
        return Lengths(self.characters.less(characters), self.words.less(words), self.sentences.less(sentences))

    @property
    def empty(self) -> bool:
        """Whether no text is within."""
        return any(one.empty or (one.most is not None and one.most < 0) for one in self)


class TooManyStates(Exception):
    """Nothing was found out in reasonable time."""


class Budget:
    """Steps that may still be taken."""

    def __init__(self, steps: int = MOST_STEPS) -> None:
        self.steps = steps

    def spend(self, steps: int) -> None:
        """Raises `TooManyStates` if that is more than there is."""
        self.steps -= steps
        if self.steps < 0:
            raise TooManyStates


class Filler(NamedTuple):
    """What makes a text longer and says nothing."""

    space: str
    word: str
    sentence: str


class Automaton:
    """Of the phrases of all goals. A state is that of each phrase, as a number, and where the text stands.

    Parameters
    ----------
    goals : sequence of Goal
        `Include`, `Exclude` and `Length` count here.
    alphabet : collection of str, optional
        The characters that texts are made of; None: all there are.
    plain : bool
        For completions that are written and not only thought of: words are joined with apostrophes only where a phrase
        does so ("cat'dog" is one word, but no good one), and words beyond those of phrases come last, so that the
        shortest is found sooner, but for a character that a mark among the phrases might save.
    """

    def __init__(self, goals: Sequence[Goal], alphabet: Collection[str] | None = None, plain: bool = False) -> None:
        asked = [(word, goal) for goal in goals if isinstance(goal, Words) for word in goal.words]
        self._phrases = [Phrase(word, goal.case) for word, goal in asked]
        self._wanted = [isinstance(goal, Include) for _, goal in asked]
        self._cased = any(goal.case for _, goal in asked)
        self._alphabet, self._plain = alphabet, plain
        own = sum(count_words(word) for word in words_of(goals))
        far = max(FAR, 2 * (len(asked) + own))
        self._far = (1 + own, 1 + own) if plain else (far, 2 * far)
        """Sentences and words that are counted one by one; of more each takes the same room."""
        self._found: dict[Any, str | None] = {}
        self._numbers: dict[tuple[int, frozenset[int]], int] = {}
        self._states: list[frozenset[int]] = []
        self._afters: dict[tuple[int, Symbol], int] = {}
        self._moves: dict[State, dict[Step, str]] = {}
        self._symbols: dict[str, Symbol] = {}
        self._known_steps: dict[tuple[State, Symbol], Step | None] = {}
        self.start = (*(self._number(n, phrase.start()) for n, phrase in enumerate(self._phrases)), 0)

    @cached_property
    def _said(self) -> set[str]:
        """Characters of the phrases; in both cases if case counts."""
        said = {c for phrase in self._phrases for c in phrase.characters}
        if self._cased:
            said |= {c.upper() for c in said if len(c.upper()) == 1} | {fold(c) for c in said}
        return said

    @cached_property
    def symbols(self) -> dict[Symbol, str]:
        """One for all characters that no goal tells apart, and the first of these."""
        said, found, kinds = self._said, dict[Symbol, str](), set[Symbol]()
        for character in sorted(said):
            spellings = (character,) if self._cased else (character, character.upper())
            if usable := [c for c in spellings if self._usable(c) and fold(c) == fold(character)]:
                found[_symbol(character)] = usable[0]
        for character in chain(_COMMON, _RARE if self._alphabet is None else self._alphabet):
            kind = _symbol(character)._replace(character="")
            if kind not in kinds and self._usable(character) and not said & {character, fold(character)}:
                kinds.add(kind)
                found[_symbol(character)] = character
        return found

    def _usable(self, character: str) -> bool:
        return len(character) == 1 and (self._alphabet is None or character in self._alphabet)

    def _after(self, phrase: int, state: int, symbol: Symbol) -> int:
        key = state, symbol  # a state's number is that of one phrase only
        if key not in self._afters:
            self._afters[key] = self._number(phrase, self._phrases[phrase].after(self._states[state], symbol))
        return self._afters[key]

    def symbol(self, character: str) -> Symbol:
        """That stands for any character."""
        if (found := self._symbols.get(character)) is None:
            own = character if self._cased else fold(character)
            found = self._symbols[character] = _symbol(own)
            if not self._said & {own, fold(own)}:
                self._symbols[character] = found = self._kinds.get(found._replace(character=""), found)
        return found

    @cached_property
    def _kinds(self) -> dict[Symbol, Symbol]:
        """What stands for characters that no goal speaks of, by their kind."""
        silent = (one for one in self.symbols if not self._said & {one.character, fold(one.character)})
        return {one._replace(character=""): one for one in silent}

    def step(self, state: State, character: str) -> Step | None:
        """Behind a character; None if no text goes on so."""
        return self.step_by(state, self.symbol(character))

    def step_by(self, state: State, symbol: Symbol) -> Step | None:
        """Behind a character that a symbol stands for."""
        key = state, symbol
        if key not in self._known_steps:
            if len(self._known_steps) > _MANY:
                self._known_steps.clear()
            self._known_steps[key] = self._step(*key)
        return self._known_steps[key]

    def read(self, state: State, text: str) -> Step | None:
        """Behind a text; None if no text goes on so."""
        found = Step(state, 0, 0)
        for character in text:
            if (step := self.step(found.state, character)) is None:
                return None
            found = found.then(step)
        return found

    @cached_property
    def filler(self) -> Filler | None:
        """Words and sentences that say no phrase, if there are characters for them."""
        silent = [(one, self.symbols[one]) for one in self._kinds.values()]
        letter, space, end = (
            next((c for one, c in silent if getattr(one, kind)), "") for kind in ("word", "space", "end")
        )
        return Filler(space, space + letter, end + space + letter) if letter and space and end else None

    @property
    def phrases(self) -> int:
        """How many words and phrases goals speak of."""
        return len(self._phrases)

    def _number(self, phrase: int, state: frozenset[int]) -> int:
        key = phrase, state
        if key not in self._numbers:
            self._numbers[key] = len(self._states)
            self._states.append(state)
        return self._numbers[key]

    def moves(self, state: State) -> dict[Step, str]:
        """All that may come behind a state, each with a character that leads there."""
        if (found := self._moves.get(state)) is None:
            if len(self._moves) > _MANY:
                self._moves.clear()
            found = self._moves[state] = {}
            for symbol, character in self.symbols.items():
                step = self._step(state, symbol)
                if step is not None and not (self._plain and symbol.word and self._joins(state)):
                    found.setdefault(step, character)
        return found

    def _joins(self, state: State) -> bool:
        """Whether a word would go on behind an apostrophe that belongs to no phrase."""
        begun = (
            phrase.said[at - 1] in APOSTROPHES
            for n, phrase in enumerate(self._phrases)
            for at in self._states[state[n]]
            if at > 0
        )
        return bool(state[-1] & JOINT) and not any(begun)

    def _step(self, state: State, symbol: Symbol) -> Step | None:
        after = []
        for n, wanted in enumerate(self._wanted):
            one = self._after(n, state[n], symbol)
            if self._states[one] == DONE and not wanted:
                return None
            after.append(one)
        place, words, sentences = state[-1], 0, 0
        joint = JOINT if symbol.apostrophe and place & IN_WORD else 0
        if symbol.word:
            words = not place & (IN_WORD | JOINT)
            place = IN_WORD | IN_SENTENCE
        elif symbol.space:
            sentences = bool(place & IN_SENTENCE and place & ENDED)
            place = 0 if place & ENDED else place & IN_SENTENCE
        else:
            ended = ENDED if symbol.end or (symbol.closer and place & ENDED) else 0
            place = place & IN_SENTENCE | ended | joint
        return Step((*after, place), int(words), int(sentences))

    def lacking(self, state: State, words: int, sentences: int) -> int:
        """At least so many characters are still needed, for so many further words and sentences among others: phrases
        that stand apart have their own places, and what is begun of one of them is there."""
        letters, unsaid = self._unsaid(state)
        place, words = state[-1], max(words, unsaid)
        if sentences > 0:  # each takes its word, an end mark and a space
            there = 2 if not place & IN_SENTENCE else 1 if place & ENDED else 0
            return letters + 3 * sentences + 2 * max(0, words - sentences) - there
        return letters + (2 * words - (not place & IN_WORD) if words > 0 else 0)

    def least_words(self, state: State) -> int:
        """At least so many further words are needed, unless apostrophes join phrases."""
        return self._unsaid(state)[1]

    def _unsaid(self, state: State) -> tuple[int, int]:
        """Of phrases that stand apart: characters beyond two a word, and words, but for what is begun of one."""
        letters = words = begun = there = 0
        for n, starts, more in self._apart:
            one = self._states[state[n]]
            if not self._phrases[n].at_end(one):
                letters, words = letters + more, words + len(starts)
                at = max(one, default=0)
                if at > 0:
                    said = sum(start < at for start in starts)
                    begun, there = max(begun, said), max(there, at - 2 * said + 1)
        return letters - there, words - begun

    @cached_property
    def _apart(self) -> list[tuple[int, list[int], int]]:
        """Wanted phrases that begin and end with a word character and have no word in common, so that none is where
        another is: where their words begin, and how many characters they have beyond two a word, without a last space.
        Those in longer ones are left out: they may be said with them."""
        wanted = [(n, phrase) for n, phrase in enumerate(self._phrases) if self._wanted[n]]
        longest = [
            (n, phrase.said)
            for n, phrase in wanted
            if is_word(phrase.said[0]) and is_word(phrase.said[-1])
            and not any(_within(phrase, other) for m, other in wanted if m != n)
        ]  # fmt: skip
        counts = Counter(part for _, said in longest for part in _parts(said))
        return [
            (n, starts, len(said) - 2 * len(starts) + 1)
            for n, said in longest
            if all(counts[part] == 1 for part in _parts(said)) and (starts := word_starts(said))
        ]

    def begun(self, state: State) -> Iterator[str]:
        """What is left to say of wanted phrases that are begun."""
        for n, phrase in enumerate(self._phrases):
            if self._wanted[n] and not phrase.at_end(self._states[state[n]]):
                for at in self._states[state[n]]:
                    if at > 0:
                        symbols = [self.symbol(character) for character in phrase.said[at:]]
                        yield "".join(self.symbols.get(symbol, symbol.character) for symbol in symbols)

    def completed(self, state: State, lengths: Lengths, budget: Budget) -> str | None:
        """The shortest text with which one in this state has all that is asked for, of these further lengths; None if
        there is none. Of the words and sentences beyond those that phrases may need each takes the same room."""
        if lengths.empty:
            return None
        filler, sentences, words = self.filler, 0, 0
        if filler is not None:
            sentences = max(0, lengths.sentences.least - self._far[0])
            words = max(0, lengths.words.least - sentences - self._far[1])
        filling = "" if filler is None else filler.sentence * sentences + filler.word * words
        left = lengths.less(len(filling), sentences + words, sentences)
        text = None if left.empty else self._shortest(state, left, budget)
        missing = 0 if text is None else lengths.characters.least - len(text) - len(filling)
        if text is None or missing <= 0:
            return None if text is None else text + filling
        return None if filler is None else text + filling + filler.space * missing

    def _shortest(self, state: State, lengths: Lengths, budget: Budget) -> str | None:
        key = state, lengths
        if not self._plain:
            return _search(self, *key, budget)
        if key not in self._found:
            if len(self._found) > _MANY:
                self._found.clear()
            self._found[key] = _search(self, *key, budget)
        return self._found[key]

    def accepts(self, state: State) -> bool:
        """Whether a text that ends here says what it must and nothing else."""
        pairs = zip(self._phrases, self._wanted, state, strict=False)
        return all(phrase.at_end(self._states[one]) == wanted for phrase, wanted, one in pairs)

    def says_excluded(self, state: State) -> bool:
        """Whether a text that ends here says what it must not."""
        pairs = zip(self._phrases, self._wanted, state, strict=False)
        return any(not wanted and phrase.at_end(self._states[one]) for phrase, wanted, one in pairs)

    @staticmethod
    def in_word(state: State) -> bool:
        """Whether a word character would go on with a word."""
        return bool(state[-1] & (IN_WORD | JOINT))

    @staticmethod
    def ended(state: State) -> bool:
        """Whether the end mark of a sentence was there, and nothing but closing marks since."""
        return bool(state[-1] & ENDED)

    @staticmethod
    def open_sentence(state: State) -> int:
        """1 if the end of the text ends a sentence."""
        return int(bool(state[-1] & IN_SENTENCE))


def shortest(
    goals: Sequence[Goal], budget: Budget | None = None, alphabet: Collection[str] | None = None
) -> str | None:
    """The shortest text that has all words and lengths asked for, but for those in tokens; None if there is none.

    Raises
    ------
    TooManyStates
        The budget (by default `MOST_STEPS`) is used up.
    """
    machine = Automaton(goals, alphabet)
    return machine.completed(machine.start, Lengths.of(goals), budget or Budget())


def _search(machine: Automaton, start: State, lengths: Lengths, budget: Budget) -> str | None:
    """The shortest text of at most so many characters: A* (Hart et al. 1968), of equal ones the longer first."""
    characters, words, sentences = lengths
    first = (start, 0, 0)
    before: dict[Any, tuple[Any, str] | None] = {first: None}
    reached: dict[Any, int] = {first: 0}
    queue: list[Any] = [(0, 0, 0, first)]
    tie, steps = 0, (1 + machine.phrases) * len(machine.symbols)
    while queue:
        _, minus, _, node = heappop(queue)
        state, said, ended = node
        if -minus != reached[node]:
            continue  # it was reached by a shorter way since
        budget.spend(steps)
        ended_at_end = sentences.counted(ended + machine.open_sentence(state))
        enough = said >= words.least and ended_at_end is not None and ended_at_end >= sentences.least
        if enough and machine.accepts(state):
            return _spelled(before, node)
        length = 1 - minus
        for step, character in machine.moves(state).items():
            w, s = words.counted(said + step.words), sentences.counted(ended + step.sentences)
            after = (step.state, w, s)
            if w is None or s is None or reached.get(after, length + 1) <= length:
                continue
            missing = words.least - w, sentences.least - s - machine.open_sentence(step.state)
            whole = length + machine.lacking(step.state, *missing)
            if characters.most is None or whole <= characters.most:
                before[after], reached[after] = (node, character), length
                tie += 1
                heappush(queue, (whole, -length, tie, after))
    return None


def _spelled(before: dict[Any, tuple[Any, str] | None], node: Any) -> str:
    """The characters that lead to a node."""
    found = []
    while (step := before[node]) is not None:
        node, character = step
        found.append(character)
    return "".join(reversed(found))
