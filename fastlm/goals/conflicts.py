# SPDX-License-Identifier: Apache-2.0
"""Whether wishes can all be had; if not, which of them cannot, why, and what would have to change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, TypeAlias

from fastlm.constraints import grammar_of
from fastlm.goals import forms
from fastlm.goals.automaton import Bounds, Budget, TooManyStates, shortest
from fastlm.goals.guides import Alphabet
from fastlm.goals.kinds import Exclude, Goal, Include, Length, Matches, Novel, Words, quoted, words_of
from fastlm.options import GenerationOptions

if TYPE_CHECKING:
    from fastlm.model import Model

CLOSE = 1.25
"""So many times the shortest possible length a limit may be, and is still called close."""


FORM_SECONDS = 0.7
"""Of a check, for all comparisons of regular expressions together; none is begun later, and each is over in a second or
so (`fastlm.goals.forms.FUEL`)."""


class ConflictError(ValueError):
    """Goals that cannot all be met.

    Attributes
    ----------
    conflict : list of Goal
        A minimal set of them: without any one of these the others can be had.
    relaxations : list of Goal
        Each in the place of one of the conflict's goals makes the rest possible: all goals, or where there are several
        conflicts those of this one, as the message then says.
    """

    def __init__(self, conflict: Sequence[Goal], relaxations: Sequence[Goal], why: str) -> None:
        super().__init__(why)
        self.conflict, self.relaxations = list(conflict), list(relaxations)

    def __reduce__(self) -> Any:  # an exception is pickled by its arguments
        return type(self), (self.conflict, self.relaxations, str(self))


@dataclass(frozen=True)
class Verdict:
    """What is known before a text is written.

    Attributes
    ----------
    possible : bool or None
        Whether some text meets all hard goals; None: undecided.
    reason : str
        Why it is undecided, or what is worth knowing, as a limit that is close to the shortest text.
    example : str or None
        A text, meaningless, that meets them all, if one was made.
    """

    possible: bool | None
    reason: str = ""
    example: str | None = None


def check(goals: Sequence[Goal], model: Model | None = None) -> Verdict:
    """Whether goals can all be met, before anything is written.

    Words and lengths are an automaton, whose shortest text is found; with regular expressions they are intersected by
    ``llguidance``. A conflict's minimal set is what is left when each goal that it does without is taken away (deletion
    filter: Chinneck & Dravnieks 1991).

    Parameters
    ----------
    goals : sequence of Goal
        Soft goals are looked over: of them there may always be less.
    model : Model, optional
        Whose tokens are counted.

    Raises
    ------
    ConflictError
        If no text can meet them.
    TypeError
        For what is no goal, or no model.
    """
    if isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model={str(model)!r:.60}: expected a model, as fastlm.load gives")
    hard = [goal for goal in listed(goals) if goal.hard]
    question = _Question(model)
    try:
        verdict = question.ask(hard)
        if verdict.possible is not False:
            return verdict
        conflict = question.least(hard)
    except TooManyStates:
        return Verdict(None, "there are too many combinations of these words and lengths to try them all")
    changes, would = question.changes(hard, conflict)
    raise ConflictError(conflict, [changed for _, changed in changes], question.why(conflict, changes, would))


def listed(given: Any) -> list[Goal]:
    """Goals as they were given, looked over; TypeError for what is none."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise TypeError(f"goals: expected a list of goals, found {type(given).__name__}")
    for place, goal in enumerate(given):
        if not isinstance(goal, Goal) or type(goal) is Goal:
            raise TypeError(f"goals[{place}]={goal!r:.60}: expected a goal, such as fastlm.goals.Include('word')")
    return list(given)


class _Question:
    """What is asked about some goals, all with one budget."""

    def __init__(self, model: Model | None) -> None:
        self._model, self._budget = model, Budget()
        self._alphabet = None if model is None else Alphabet(model)
        self._known: dict[tuple[Goal, ...], Verdict] = {}
        self._seconds = 0.0  # for forms

    def ask(self, goals: Sequence[Goal]) -> Verdict:
        """Whether all can be met."""
        key = tuple(goals)
        if key not in self._known:
            self._known[key] = self._answer(goals)
        return self._known[key]

    def _answer(self, goals: Sequence[Goal]) -> Verdict:
        text = self._shortest(goals)
        if text is None:
            return Verdict(False)
        found = [self._with_tokens(goals, text), self._with_forms(goals)]
        if any(one.possible is False for one in found):
            return Verdict(False)
        undecided = [one.reason for one in found if one.possible is None]
        if any(isinstance(goal, Novel) for goal in goals):
            undecided.append("whether the model can do without copies shows while writing")
        if undecided:
            return Verdict(None, "; ".join(undecided))
        form = any(isinstance(goal, Matches) for goal in goals)
        return Verdict(True, _close(goals, text), None if form else found[0].example)

    def _shortest(self, goals: Sequence[Goal]) -> str | None:
        return shortest(goals, self._budget, self._alphabet)

    def _with_tokens(self, goals: Sequence[Goal], text: str) -> Verdict:
        bounds = Bounds.of(goals, "tokens")
        if bounds.empty:
            return Verdict(False)
        if bounds.least == 0 and bounds.most is None:
            return Verdict(True, example=text)
        if self._model is None:
            return Verdict(None, "how many tokens a text has depends on the model")
        return _in_tokens(self._model, goals, text, bounds)

    def _with_forms(self, goals: Sequence[Goal]) -> Verdict:
        wanted = [goal for goal in goals if isinstance(goal, Matches)]
        for goal in wanted:
            grammar_of(GenerationOptions.of(goal.form))  # what cannot be read is said
        if not wanted:
            return Verdict(True)
        regular = [goal for goal in goals if not isinstance(goal, Matches) or goal.regex is not None]
        if any(goal.regex is not None for goal in wanted) and (found := self._compared(regular)) is not True:
            return Verdict(found, "the regular expression and the other goals take too long to compare")
        if len(regular) < len(goals):
            return Verdict(None, "whether a grammar or schema has texts that meet all goals shows while writing")
        counted = {goal.unit for goal in goals if isinstance(goal, Length)} & {"sentences", "tokens"}
        if counted:
            return Verdict(None, f"whether a form leaves room for {' and '.join(sorted(counted))} shows while writing")
        return Verdict(True)

    def _compared(self, goals: Sequence[Goal]) -> bool | None:
        if self._seconds > FORM_SECONDS:
            return None
        begin = time.thread_time()
        found = forms.possible(goals)
        self._seconds += time.thread_time() - begin
        return found

    def least(self, goals: Sequence[Goal]) -> list[Goal]:
        """A minimal set of goals that cannot all be met, of some that cannot."""
        kept = list(range(len(goals)))
        for place in range(len(goals)):
            rest = [one for one in kept if one != place]
            if self.ask([goals[one] for one in rest]).possible is False:
                kept = rest
        return [goals[one] for one in kept]

    # ---- what would make it possible -------------------------------------------------------------------

    def changes(self, goals: Sequence[Goal], conflict: Sequence[Goal]) -> tuple[list[Change], str]:
        """Of each goal of a conflict the smallest changes with which all can be had, or at least may be; if there are
        none, for there is another conflict, those with which the goals of this one can be; and what they would do, in
        words."""
        found: list[Change] = []
        sure = all(self.ask([goal]).possible is not None for goal in goals)
        for among, would in (
            (goals, "It would be possible" if sure else "It might be possible"),
            (conflict, "Besides these others conflict, too; these would be possible"),
        ):
            other_conflict = True
            for goal in conflict:
                others = [one for one in among if one is not goal]
                try:
                    if (rest := self.ask(others).possible) or (rest is None and not sure):
                        found += ((goal, changed) for changed in self._changes(goal, others, sure))
                except TooManyStates:
                    return found, would
                other_conflict &= rest is False
            if found or not other_conflict:
                return found, would
        return [], ""

    def _changes(self, goal: Goal, others: Sequence[Goal], sure: bool) -> Iterator[Goal]:
        def possible(changed: Goal) -> bool:
            answer = self.ask([*others, changed]).possible
            return answer is True if sure else answer is not False

        if isinstance(goal, Words):
            yield from _fewer(goal, possible)
        elif isinstance(goal, Length):
            yield from _wider(goal, possible)
        elif isinstance(goal, Matches) and possible(Include(())):
            yield Include(())

    # ---- in words --------------------------------------------------------------------------------------

    def why(self, conflict: Sequence[Goal], changes: Sequence[Change], would: str) -> str:
        """What cannot be had together, why, and what would help."""
        said = f"no text can have all of this: {'; '.join(map(str, conflict))}"
        try:
            reason = self._reason(conflict)
        except TooManyStates:
            reason = ""
        limits_first = sorted(changes, key=lambda change: not isinstance(change[0], Length))
        helps = list(dict.fromkeys(_change(*change) for change in limits_first))
        if len(helps) > _SHOWN:
            helps = [*helps[:_SHOWN], "the like"]
        return ". ".join(filter(None, (said, reason, f"{would} if you {', or '.join(helps)}" if helps else "")))

    def _reason(self, conflict: Sequence[Goal]) -> str:
        unwritten = [c for c in "".join(words_of(conflict)) if self._alphabet is not None and c not in self._alphabet]
        if len(conflict) == 1 and unwritten:
            return f"The model has no token for {quoted(dict.fromkeys(unwritten))}"
        for limit in conflict:
            rest = [goal for goal in conflict if goal is not limit]
            if not isinstance(limit, Length) or limit.max is None or any(isinstance(goal, Matches) for goal in rest):
                continue
            text = self._shortest(rest) if rest else None
            length = None if text is None else limit.of(text, self._tokens(text))
            if text is not None and length is not None and length > limit.max:
                shown = text if len(text) <= _EXAMPLE else text[:_EXAMPLE] + "…"
                return f"The shortest text with the rest has {limit.counted(length)}, for example {shown!r}"
        for goal in conflict:
            for word in words_of(one for one in conflict if isinstance(one, Include)):
                if isinstance(goal, Exclude) and goal.said(word):
                    return f"{word!r} is asked for, and {quoted(goal.said(word))} is ruled out"
        return ""

    def _tokens(self, text: str) -> int | None:
        return None if self._model is None else len(self._model._said(text, inside=True))


def _in_tokens(model: Model, goals: Sequence[Goal], text: str, bounds: Bounds) -> Verdict:
    """Whether a text can have so many tokens: shown by an example, or by what the longest token can hold."""
    full = Bounds.of(goals, "characters").most
    known, count, added = model._need_tokenizer(), len(model._said(text, inside=True)), 0
    while count < bounds.least and (full is None or len(text) < full) and added < 4 * bounds.least:
        spaces = bounds.least - count if full is None else min(bounds.least - count, full - len(text))
        text, added = text + " " * spaces, added + spaces  # some tokens are several
        count = len(model._said(text, inside=True))
    if bounds.least <= count and (bounds.most is None or count <= bounds.most):
        return Verdict(True, example=text)
    longest, shortest_text = max((len(piece) for piece in known.pieces), default=1), len(text.strip().encode())
    shortest_text = max(shortest_text, Bounds.of(goals, "characters").least)  # a character has a byte or more
    if known.exact_pieces and bounds.most is not None and shortest_text > longest * bounds.most:
        return Verdict(False)
    return Verdict(None, "whether the words fit into so many tokens shows while writing")


def _close(goals: Sequence[Goal], text: str) -> str:
    """What is said of a limit that leaves little room."""
    for goal in goals:
        if isinstance(goal, Length) and goal.max is not None and goal.min < goal.max:
            length = goal.of(text.rstrip())
            if length is not None and 0 < length <= goal.max < CLOSE * length:
                return f"{goal} leaves little room: the shortest text has {length}"
    return ""


Change: TypeAlias = "tuple[Goal, Goal]"
"""A goal, and what may take its place."""

_EXAMPLE = 60  # characters of one that are shown

_SHOWN = 4
"""Changes that a message names."""

_TRIED = 60
"""Ways to leave one word or two out that are tried."""

_MOST = 100_000
"""A limit that would have to be raised so far helps nobody."""


def _change(goal: Goal, changed: Goal) -> str:
    """What somebody would have to do."""
    if isinstance(goal, Words) and isinstance(changed, Words):
        dropped = quoted(word for word in goal.words if word not in changed.words)
        return f"drop {dropped}" if isinstance(goal, Include) else f"allow {dropped}"
    if not isinstance(goal, Length) or not isinstance(changed, Length):
        return f"leave out: {goal}"
    if changed.max is not None and changed.max != goal.max:
        return f"raise max to {changed.counted(changed.max)}"
    return f"lower min to {changed.counted(changed.min)}"


def _fewer(goal: Words, possible: Callable[[Goal], bool]) -> Iterator[Goal]:
    """With as few words less as it takes; if many have to go, with a choice without which none of the others can be."""

    def without(left_out: Collection[str]) -> Goal:
        return type(goal)([word for word in goal.words if word not in left_out], goal.case)

    for count in (1, 2):
        ways = islice(combinations(goal.words, count), _TRIED)
        if found := [changed for changed in map(without, ways) if possible(changed)]:
            yield from found
            return
    dropped: list[str] = []
    for word in sorted(goal.words, key=len, reverse=True):  # the longest help most
        dropped.append(word)
        if possible(without(dropped)):
            break
    else:
        return
    for word in list(dropped):
        rest = [one for one in dropped if one != word]
        dropped = rest if possible(without(rest)) else dropped
    yield without(dropped)


def _wider(goal: Length, possible: Callable[[Goal], bool]) -> Iterator[Goal]:
    """With a larger maximum, or a smaller minimum."""
    if goal.max is not None and (goal.min == 0 or possible(replace(goal, max=None))):
        low, high = goal.max, max(1, 2 * goal.max)
        while high < _MOST and not possible(replace(goal, max=high)):
            low, high = high, 2 * high
        if high < _MOST:
            yield replace(goal, max=_first(lambda n: possible(replace(goal, max=n)), low, high))
    if goal.min > 0 and possible(_at_least(goal, 0)):
        yield _at_least(goal, goal.min - _first(lambda n: possible(_at_least(goal, goal.min - n)), 0, goal.min))


def _at_least(goal: Length, count: int) -> Goal:
    """A length that may be anything is no goal."""
    return replace(goal, min=count) if count or goal.max is not None else Include(())


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number above ``low`` for which something holds, that holds for ``high`` and all beyond."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
