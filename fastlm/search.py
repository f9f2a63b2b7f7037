# SPDX-License-Identifier: Apache-2.0
"""Searches for the likeliest texts: beam search as Hugging Face defines it (transformers 5), with diverse groups.

A text's score is the sum of its tokens' log-probabilities, its end among them, by ``length ** length_penalty``, its
end counted. At each step the max(2, 1 + ends) * beams likeliest continuations are looked at; those among the first
``beams`` that end are finished, and the best ``beams`` that do not go on. Ties: the older beam first, then the lower
token.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fastlm import _engine
from fastlm.constraints import Guide
from fastlm.controls import Plan


@dataclass(slots=True)
class Beam:
    """A text in the making. ``score``: by which it is chosen, with penalties for likeness to other groups."""

    state: _engine.State
    unread: array[int]
    tokens: tuple[int, ...] = ()
    score: float = 0.0
    logprobs: tuple[float, ...] = ()
    memory: _engine.Memory | None = None
    guide: Guide | None = None


@dataclass(frozen=True)
class Found:
    """A text that a search has found. ``finish``: ``"stop"`` or ``"length"``; ``score``: by which they are ranked."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    ended_by: int | None
    score: float
    satisfied: bool | None


@dataclass(slots=True)
class Group:
    """Beams that choose together, and what they have finished: best first."""

    beams: list[Beam]
    finished: list[Found] = field(default_factory=list)
    over: bool = False


Over = Callable[[], str | None]
"""Why a search has to end now, or None."""


def beam_search(decoder: _engine.Decoder, plan: Plan, start: Beam, over: Over) -> tuple[list[Found], str | None]:
    """The texts that a beam search finds, the best first, and why it was broken off, if it was."""
    options = plan.options
    groups = [Group([_copy(start)]) for _ in range(options.num_beam_groups or 1)]
    width, reason = options.num_beams // len(groups), None
    while options.max_tokens and not all(group.over for group in groups):
        if (reason := over()) is not None:
            break
        _advance(decoder, plan, groups, width)
    found = [one for group in groups for one in group.finished]
    if reason is not None or not found:  # what there is
        found += [_cut(beam, options.length_penalty, reason or "length") for group in groups for beam in group.beams]
    return sorted(found, key=lambda one: -one.score), reason


def _copy(beam: Beam) -> Beam:
    memory, guide = beam.memory and beam.memory.copy(), beam.guide and beam.guide.copy()
    return replace(beam, state=beam.state.copy(), memory=memory, guide=guide)


def _advance(decoder: _engine.Decoder, plan: Plan, groups: list[Group], width: int) -> None:
    """One more token for all beams of all groups that are not over: one pass of the model."""
    looked_at = max(2, 1 + len(plan.ends)) * width
    live = [group for group in groups if not group.over]
    jobs = [_job(plan, beam, looked_at) for group in live for beam in group.beams]
    successors = iter(decoder.expand(jobs))
    chosen: Counter[int] = Counter()
    for group in live:
        candidates = []
        for place, beam in enumerate(group.beams):
            for token, logprob in zip(*next(successors), strict=True):
                score = beam.score + logprob - (plan.options.diversity_penalty or 0.0) * chosen[token]
                candidates.append((-score, place, token, logprob))
        best = heapq.nsmallest(looked_at, candidates)
        _choose(plan, group, best, width)
        chosen.update(beam.tokens[-1] for beam in group.beams)


def _job(plan: Plan, beam: Beam, looked_at: int) -> _engine.Job:
    written, options = len(beam.tokens), plan.options
    return _engine.Job(
        beam.state,
        beam.unread,
        plan.sampling,
        1,
        memory=beam.memory,
        min_tokens=max(0, options.min_tokens - written),
        # A penalty may take away as many as other beams have chosen.
        alternatives=min(looked_at + (options.num_beams if options.diversity_penalty else 0), plan.vocab_size),
        allowed=plan.allowed,
        guide=beam.guide,
    )


def _choose(plan: Plan, group: Group, best: Sequence[tuple[float, int, int, float]], width: int) -> None:
    """Finishes what ends, and lets the best of the rest go on."""
    options, parents = plan.options, group.beams
    length, ends = len(parents[0].tokens) + 1, plan.ends
    last = length == options.max_tokens
    onward: list[tuple[float, int, int, float]] = []
    for rank, candidate in enumerate(best):
        over = last or candidate[2] in ends or _completes(parents[candidate[1]], candidate[2])
        if over and rank < width:
            _finish(plan, group, candidate, width)
        elif not over and len(onward) < width:
            onward.append(candidate)
    shared = Counter(place for _, place, _, _ in onward)
    group.beams = [_child(parents[place], token, logprob, -minus, shared) for minus, place, token, logprob in onward]
    for beam, (_, place, _, _) in zip(group.beams, onward, strict=True):
        shared[place] -= 1
        _follow(beam, parents[place], shared[place] > 0)
    group.over = not group.beams or _settled(plan, group, length, width)


def _child(parent: Beam, token: int, logprob: float, score: float, shared: Counter[int]) -> Beam:
    return Beam(
        parent.state,
        array("i", [token]),
        (*parent.tokens, token),
        score,
        (*parent.logprobs, logprob),
        parent.memory,
        parent.guide,
    )


def _follow(beam: Beam, parent: Beam, copied: bool) -> None:
    """Gives a beam a past of its own: the parent's, or a copy if others need it too."""
    token = beam.tokens[-1]
    beam.state = parent.state.copy() if copied else parent.state
    if parent.memory is not None:
        beam.memory = parent.memory.copy() if copied else parent.memory
        beam.memory.add(array("i", [token]), True)
    if parent.guide is not None:
        beam.guide = parent.guide.copy() if copied else parent.guide
        beam.guide.accept(token)


def _completes(beam: Beam, token: int) -> bool:
    """Whether a form is complete behind a token, and nothing more may come."""
    return beam.guide is not None and beam.guide.copy().accept(token) == "stop"


def _finish(plan: Plan, group: Group, candidate: tuple[float, int, int, float], width: int) -> None:
    minus, place, token, logprob = candidate
    beam = group.beams[place]
    ended = token in plan.ends
    power = 1.0 if plan.options.length_penalty is None else plan.options.length_penalty
    complete = _completes(beam, token)
    satisfied = None if beam.guide is None else ended or complete
    tokens = beam.tokens if ended else (*beam.tokens, token)
    logprobs = beam.logprobs if ended else (*beam.logprobs, logprob)
    score = -minus / (len(beam.tokens) + 1) ** power
    found = Found(
        tokens, logprobs, "stop" if ended or complete else "length", token if ended else None, score, satisfied
    )
    group.finished.append(found)  # stays behind those that are as good
    group.finished.sort(key=lambda one: -one.score)
    del group.finished[width:]


def _settled(plan: Plan, group: Group, length: int, width: int) -> bool:
    """Whether what is finished stays the best, by the rule that was chosen."""
    options = plan.options
    if len(group.finished) < width:
        return False
    if options.early_stopping is True:
        return True
    power = 1.0 if options.length_penalty is None else options.length_penalty
    farthest = options.max_tokens if options.early_stopping == "never" and power > 0 else length
    return not group.beams[0].score / farthest**power > group.finished[-1].score


def _cut(beam: Beam, length_penalty: float | None, finish: str) -> Found:
    power = 1.0 if length_penalty is None else length_penalty
    score = beam.score / max(1, len(beam.tokens)) ** power
    satisfied = None if beam.guide is None else beam.guide.complete
    return Found(beam.tokens, beam.logprobs, finish, None, score if beam.tokens else -math.inf, satisfied)
