# SPDX-License-Identifier: Apache-2.0
"""Texts that have much of several soft goals at once: a search that shows what can be had of each, and choices.

Texts grow side by side in segments. After each the states of those that are best by some weighting of the goals are
forked, and the others are given up, so that all tokens are spent on what is promising (as particles of sequential Monte
Carlo: Lew et al. 2023, "Sequential Monte Carlo Steering of Large Language Models"; the weightings are spread over all
that there are, as in decomposition: Zhang & Li 2007, "MOEA/D").
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlm.goals.soft import Brief, Soft
from fastlm.options import Completion, check_whole
from fastlm.state import Session, write_together

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.controls import Plan
    from fastlm.model import Model

METHODS = ("fork", "best_of_n")
CHOICES = ("weights", "priority", "fairest")


@dataclass(frozen=True)
class Search:
    """How texts are found that have much of several soft goals.

    Parameters
    ----------
    method : {"fork", "best_of_n"}
        "fork": what is promising is forked as it grows; "best_of_n": texts are written to their ends and then compared.
        Both write ``lanes`` times ``max_tokens`` tokens, but for the texts that end earlier.
    choose : {"weights", "priority", "fairest"}
        Of texts none of which is better than another in all goals: by the sum of what they have, times the goals'
        weights; by one goal after the other, in the order of their priority, each as far as it is ``at_least``; or the
        one whose least fulfilled goal is fulfilled most (Chebyshev). But for priorities, texts that lack least of what
        is ``at_least`` come first.
    lanes : int
        Texts that grow side by side, and ``n`` at least. With less than twice the number of goals not each of these is
        looked for alone.
    segment : int
        Tokens between two looks at them.
    """

    method: str = "fork"
    choose: str = "weights"
    lanes: int = 16
    segment: int = 4

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("choose", CHOICES)):
            if getattr(self, name) not in known:
                raise ValueError(f"Search: {name}={getattr(self, name)!r:.60}: expected one of {', '.join(known)}")
        for name in ("lanes", "segment"):
            check_whole(f"Search: {name}", getattr(self, name), 1, 4096)


GIVEN_UP = "given up"
"""How a lane ended that no longer grows."""


class Lane:
    """A text that grows: see `fastlm.goals.soft.Growing`; ``marks`` are what goals remember of it."""

    def __init__(self, prompt: str, ids: array[int], session: Session | None = None) -> None:
        self.prompt, self.ids, self.session = prompt, ids, session
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.logprob, self.text, self.finish = 0.0, "", "length"
        self.marks: list[Any] = []

    def copy(self, index: int) -> Lane:
        """That goes on differently."""
        found = Lane(self.prompt, self.ids, None if self.session is None else self.session.copy())
        if found.session is not None:
            found.session.index = index
        found.tokens, found.logprobs = self.tokens[:], self.logprobs[:]
        found.logprob, found.text, found.finish = self.logprob, self.text, self.finish
        found.marks = [mark if mark is None else mark.copy() for mark in self.marks]
        return found

    def extend(self, model: Model, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """By tokens with their log-probabilities."""
        self.tokens += tokens
        self.logprobs += logprobs
        self.logprob += sum(logprobs)
        self.text = model._need_tokenizer().decode(self.tokens, context=self.ids)


def measured(model: Model, goals: Sequence[Soft], lanes: Sequence[Lane]) -> npt.NDArray[np.float64]:
    """What each text has of each goal, [lanes, goals]."""
    for lane in lanes:
        if not lane.marks:
            lane.marks = [goal.start(model, lane) for goal in goals]
    found = np.empty((len(lanes), len(goals)))
    for n, goal in enumerate(goals):
        found[:, n] = goal.values(lanes, [lane.marks[n] for lane in lanes])
    return found


# ---- the search ----------------------------------------------------------------------------------------


def explored(
    model: Model,
    prompt: str,
    ids: array[int],
    goals: Sequence[Soft],
    plan: Plan,
    search: Search,
    count: int,
    seed: int,
    limits: Any,
) -> list[Lane]:
    """So many texts, each to its end; where they shall be brief, also those that were given up on the way, for what
    they are up to the end of a sentence."""
    first = Session(model, plan, {}, seed)
    first.rewind(len(first))  # its start of text: the prompt has one
    first._add(ids)
    with model._decoder() as decoder:
        decoder.feed(first._state, first._unread)
    first._unread = array("i")
    begin = Lane(prompt, ids, first)
    brief = any(isinstance(goal, Brief) for goal in goals)
    # How brief a text gets, its beginning does not say.
    growing = [goal for goal in goals if not isinstance(goal, Brief)] or goals
    begin.marks = [goal.start(model, begin) for goal in growing]
    lanes, used = [begin.copy(n) for n in range(count)], count
    done: list[Lane] = []
    weightings = _weightings(growing, count)
    for written in range(0, plan.options.max_tokens, search.segment):
        most = min(search.segment, plan.options.max_tokens - written)
        found = write_together([lane.session for lane in lanes if lane.session is not None], most, limits)
        for lane, one in zip(lanes, found, strict=True):
            lane.extend(model, one.token_ids, one.logprobs or [])
            lane.finish = one.finish_reason
            if lane.finish != "length":
                lane.session = None  # it is not needed any more
        done += (lane for lane in lanes if lane.finish != "length")
        lanes = [lane for lane in lanes if lane.finish == "length"]
        if not lanes or written + most >= plan.options.max_tokens:
            break
        if search.method == "fork":
            kept = _kept(measured(model, growing, lanes), growing, weightings)
            if brief:
                done += _given_up(lanes, kept)
            lanes = [lanes[n] if first_use else lanes[n].copy(used + at) for at, (n, first_use) in enumerate(kept)]
            used += len(kept)
    return done + lanes


def _given_up(lanes: Sequence[Lane], kept: Sequence[tuple[int, bool]]) -> Iterator[Lane]:
    for n in {*range(len(lanes))} - {n for n, _ in kept}:
        lanes[n].session, lanes[n].finish = None, GIVEN_UP
        yield lanes[n]


def _weightings(goals: Sequence[Soft], lanes: int) -> list[npt.NDArray[np.float64]]:
    """What each lane is judged by: half of them by the goals' weights, the others by all kinds of weights."""
    own = np.array([goal.weight for goal in goals], np.float64)
    if len(goals) == 1:
        return [own] * lanes
    others = list(_lattice(len(goals), lanes - lanes // 2))
    return [own] * (lanes - len(others)) + [own * one for one in others]


def _lattice(goals: int, count: int) -> Iterator[npt.NDArray[np.float64]]:
    """So many weightings, evenly spread (Das & Dennis 1998); the corners, where one goal counts alone, first."""
    parts = 1
    while math.comb(parts + goals, goals - 1) <= count:
        parts += 1
    found = []
    for bars in combinations(range(parts + goals - 1), goals - 1):
        edges = (-1, *bars, parts + goals - 1)
        found.append(np.diff(edges) - 1)
    found.sort(key=lambda one: -int(one.max()))
    for n in range(count):
        yield found[n % len(found)] / parts


def _kept(
    values: npt.NDArray[np.float64], goals: Sequence[Soft], weightings: Sequence[npt.NDArray[np.float64]]
) -> list[tuple[int, bool]]:
    """Which lane each lane goes on from, and whether it is the first that does. Of those that are judged alike the
    worst are given up for the best."""
    values = np.minimum(values, [goal.enough for goal in goals])
    spread = values.std(0)
    scores = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    found: list[int] = []
    for weights in {tuple(one): one for one in weightings}.values():
        alike = sum(np.array_equal(weights, one) for one in weightings)
        order = np.argsort(-(scores @ weights), kind="stable")[: math.ceil(_STAY * alike)]
        found += (int(order[n % len(order)]) for n in range(alike))
    found.sort()
    return [(n, at == 0 or found[at - 1] != n) for at, n in enumerate(found)]


_STAY = 0.75
"""Share of the lanes judged alike that go on: on three pairs of goals the front has as much volume as with one half, or
more, and its texts differ more."""


# ---- what is better, and what is chosen ----------------------------------------------------------------


def front(values: npt.NDArray[np.float64]) -> list[int]:
    """The rows than which no other is at least as good in all columns and better in one (Pareto); of equals the
    first."""
    found = []
    for n, row in enumerate(values):
        as_good = (values >= row).all(1)
        better = as_good & (values > row).any(1)
        if not better.any() and not as_good[:n].any():
            found.append(n)
    return found


def hypervolume(values: npt.NDArray[np.float64], reference: Sequence[float]) -> float:
    """The volume of all that some row is better than and the reference is not (Zitzler & Thiele 1998); a row that is
    worse than the reference in a column counts for nothing."""
    points = np.asarray(values, np.float64) - np.asarray(reference, np.float64)
    return _volume(points[(points > 0).all(1)]) if len(points) else 0.0


def _volume(points: npt.NDArray[np.float64]) -> float:
    """Slice by slice along the last column."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1])]
    heights = np.append(points[:, -1], 0.0)
    slices = (_volume(points[: n + 1, :-1]) * (heights[n] - heights[n + 1]) for n in range(len(points)))
    return float(sum(slices))


def ranked(values: npt.NDArray[np.float64], goals: Sequence[Soft], choose: str) -> list[int]:
    """Rows, the best first: see `Search.choose`."""
    enough = np.array([goal.enough for goal in goals])
    spread = np.ptp(values, 0)
    scale = np.where(spread > 0, spread, 1)
    lacks = np.where(np.isfinite(enough), np.maximum(0, enough - values), 0) / scale
    shares = (np.minimum(values, enough) - values.min(0)) / scale
    weights = np.array([goal.weight for goal in goals])
    order = sorted(range(len(goals)), key=lambda g: -goals[g].priority)

    def key(n: int) -> tuple[float, ...]:
        lacking, whole = round(float(lacks[n].sum()), 9), -float(shares[n] @ weights)
        if choose == "weights":
            return lacking, whole
        if choose == "fairest":
            return lacking, -float((shares[n] / weights).min()), whole
        return tuple(-round(float(shares[n, g]) * _STEPS) for g in order)

    return sorted(range(len(values)), key=key)


_STEPS = 20
"""Steps of what there is of a goal that count as different in an order of priority."""


@dataclass(frozen=True)
class Tradeoff:
    """What was found of several soft goals.

    Attributes
    ----------
    goals : sequence of Soft
    values : float64 array [texts, goals]
        What each text that was found has of each.
    front : list of Completion
        Those than which none is better in all goals, the chosen one first.
    on_front : list of int
        Their rows.
    """

    goals: Sequence[Soft]
    values: npt.NDArray[np.float64]
    front: list[Completion]
    on_front: list[int]

    @property
    def shown(self) -> npt.NDArray[np.float64]:
        """The values as people say them: probabilities of labels, not their log-odds."""
        return np.array([[goal.shown(one) for goal, one in zip(self.goals, row, strict=True)] for row in self.values])

    def pulls(self) -> list[str]:
        """Of pairs of goals that pull against each other on the front: how much of one is lost for the other."""
        found, rows = [], self.shown[self.on_front]
        for a, b in combinations(range(len(self.goals)), 2):
            x, y = rows[:, a], rows[:, b]
            if len(rows) > _FEW and x.std() > 0 and y.std() > 0 and (r := float(np.corrcoef(x, y)[0, 1])) < _AGAINST:
                slope = float(np.polyfit(x, y, 1)[0])
                found.append(
                    f"{self.goals[a]} and {self.goals[b]} pull against each other (correlation {r:.2f} among "
                    f"{len(rows)} texts): each unit more of the first costs {-slope:.3g} of the second"
                )
        return found

    def plot(self, path: Any = None) -> Any:
        """A picture of each pair of goals: all texts, those of the front, and the chosen one. Needs ``matplotlib``.

        Parameters
        ----------
        path : path, optional
            Where it is saved.

        Returns
        -------
        matplotlib.figure.Figure
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as e:
            raise ImportError("plot needs the 'matplotlib' package: pip install 'fastlm[plot]'") from e
        if len(self.goals) < 2:
            raise ValueError("plot: expected at least two soft goals")
        shown, pairs = self.shown, [*combinations(range(len(self.goals)), 2)]
        columns = min(3, len(pairs))
        rows = -(-len(pairs) // columns)
        figure = Figure(figsize=(6 * columns, 4.5 * rows), layout="constrained")
        for place, pair in enumerate(pairs, 1):
            self._draw(figure.add_subplot(rows, columns, place), shown[:, pair], *pair)
        figure.axes[0].legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def _draw(self, axes: Any, shown: npt.NDArray[np.float64], a: int, b: int) -> None:
        best = shown[sorted(self.on_front, key=lambda n: shown[n, 0])]
        line = "o-" if len(self.goals) == 2 else "o"  # of more goals the front is no line
        axes.scatter(*shown.T, s=14, color="0.7", label="texts")
        axes.plot(*best.T, line, color="tab:blue", markersize=5, label="Pareto front")
        axes.plot(*shown[self.on_front[0]], "*", color="tab:red", markersize=14, label="chosen")
        axes.set_xlabel(f"{self.goals[a]}, more is better")
        axes.set_ylabel(f"{self.goals[b]}, more is better")


_FEW, _AGAINST = 3, -0.5
