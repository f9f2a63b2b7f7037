# SPDX-License-Identifier: Apache-2.0
"""Searches for the likeliest texts: beam search as Hugging Face defines it (transformers 5), and exact search.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement, zip_longest
from typing import NamedTuple, TypeAlias

from fastlm import _engine
from fastlm.constraints import Steps, Wanted
from fastlm.controls import Plan


@dataclass(slots=True)
class Beam:
    """A text in the making. ``score``: by which it is chosen, with penalties for likeness to other groups."""

    state: _engine.State
    unread: array[int]
    tokens: tuple[int, ...] = ()
    score: float = 0.0
    memory: _engine.Memory | None = None
    guide: Steps | None = None
    wanted: Wanted | None = None


@dataclass(frozen=True)
class Found:
    """A text that a search has found. ``finish``: ``"stop"`` or ``"length"``; ``score``: by which they are ranked,
    behind all that have their form, and lack less of what they must include, unless an option says otherwise."""

    tokens: tuple[int, ...]
    finish: str
    ended_by: int | None
    score: float
    satisfied: bool | None
    missing: tuple[str | tuple[int, ...], ...] = ()

    @property
    def rank(self) -> tuple[bool, int, float]:
        """The lowest first."""
        return self.satisfied is False, len(self.missing), -self.score


@dataclass(slots=True)
class Group:
    """Beams that choose together, and what they have finished: best first."""

    beams: list[Beam]
    finished: list[Found] = field(default_factory=list)
    over: bool = False


_Candidate: TypeAlias = "tuple[float, int, int, float]"
"""How a text may go on: minus its score, its place among the beams, the token, its log-probability."""

Over = Callable[[], str | None]
"""Why a search has to end now, or None."""


def beam_searches(decoder: _engine.Decoder, starts: Sequence[tuple[Plan, Beam]], over: Over) -> list[list[Found]]:
    """The texts that beam searches find, of each the best first; those in the making too if they were broken off. All
    go on side by side: one pass of the model for a token more of each."""
    searches, reason = [_Search(plan, start) for plan, start in starts], None
    while (live := [search for search in searches if not search.over]) and (reason := over()) is None:
        plain: list[_Search] = []
        others: list[_Search] = []
        for search in live:
            (plain if search.plain else others).append(search)
        if plain:
            candidates = decoder.extend([search.beams() for search in plain])
            for search, best in zip(plain, candidates, strict=True):
                _choose(search.plan, search.groups[0], best, search.width)
        if others:
            successors = iter(decoder.expand([job for search in others for job in search.jobs()]))
            for search in others:
                search.advance(successors)
    return [search.found(reason) for search in searches]


class _Search:
    """The state of one of `beam_searches`."""

    def __init__(self, plan: Plan, start: Beam) -> None:
        self.plan, self.start = plan, start
        self.groups = [Group([_copy(start)]) for _ in range(plan.options.num_beam_groups or 1)]
        self.width = plan.options.num_beams // len(self.groups)
        self.looked_at = max(2, 1 + len(plan.ends)) * self.width

    @property
    def over(self) -> bool:
        return not self.plan.options.max_tokens or all(group.over for group in self.groups)

    @property
    def plain(self) -> bool:
        """Whether only a token was read since, and nothing looks back at the text: as in one beam, so in all."""
        one = self.groups[0].beams[0]
        return (
            len(self.groups) == 1
            and not self.plan.phrases
            and one.memory is None
            and one.guide is None
            and len(one.unread) == 1
        )

    def beams(self) -> _engine.Beams:
        """If they are plain: the best of all in one call, since to look at each in Python takes a fifth of the time."""
        beams, plan = self.groups[0].beams, self.plan
        return _engine.Beams(
            [beam.state for beam in beams],
            array("i", [beam.unread[0] for beam in beams]),
            array("d", [beam.score for beam in beams]),
            plan.sampling,
            self.looked_at,
            plan.options.min_tokens - len(beams[0].tokens),
            plan.allowed,
        )

    def jobs(self) -> list[_engine.Job]:
        live = (group for group in self.groups if not group.over)
        return [_job(self.plan, beam, self.looked_at) for group in live for beam in group.beams]

    def advance(self, successors: Iterator[tuple[list[int], list[float]]]) -> None:
        """Chooses among what may follow each of the `jobs`."""
        chosen: Counter[int] = Counter()
        for group in self.groups:
            if group.over:
                continue
            candidates = []
            for place, beam in enumerate(group.beams):
                total = beam.score
                candidates += [
                    (-total - logprob, place, token, logprob) for token, logprob in zip(*next(successors), strict=True)
                ]
            if chosen:
                diversity = self.plan.options.diversity_penalty or 0.0
                candidates = [(minus + diversity * chosen[t], place, t, p) for minus, place, t, p in candidates]
            _choose(self.plan, group, _best(self.plan, group, candidates, self.looked_at), self.width)
            if len(self.groups) > 1:
                chosen.update(beam.tokens[-1] for beam in group.beams)

    def found(self, reason: str | None) -> list[Found]:
        """reason: why all searches were broken off, if they were."""
        found = [one for group in self.groups for one in group.finished]
        reason = None if self.over else reason
        if not found or reason is not None:  # what there is
            found += [_cut(self.plan, beam, reason or "length") for group in self.groups for beam in group.beams]
        found = found or [_cut(self.plan, self.start, "unsatisfiable")]
        return sorted(found, key=lambda one: one.rank)


def _copy(beam: Beam) -> Beam:
    memory, guide = beam.memory and beam.memory.copy(), beam.guide and beam.guide.copy()
    return replace(beam, state=beam.state.copy(), memory=memory, guide=guide)


def _best(plan: Plan, group: Group, candidates: list[_Candidate], n: int) -> list[_Candidate]:
    """The n likeliest; if there is something that texts must include, the likeliest of those that have all of it, of
    those that need one more token, and so on, in turn (dynamic beam allocation: Post & Vilar 2018)."""
    candidates.sort()
    if not plan.phrases:
        return candidates[:n]
    banks: dict[int, list[_Candidate]] = {}
    for candidate in candidates:
        wanted = group.beams[candidate[1]].wanted
        if wanted is None or (candidate[2] in plan.ends and wanted.missing):
            continue
        banks.setdefault(wanted.needed_behind(candidate[2]), []).append(candidate)
    in_turn = zip_longest(*(banks[needed] for needed in sorted(banks)))
    return [candidate for turn in in_turn for candidate in turn if candidate is not None][:n]


def _job(plan: Plan, beam: Beam, looked_at: int, seed: int = 0, index: int = 0) -> _engine.Job:
    written, options = len(beam.tokens), plan.options
    return _engine.Job(
        beam.state,
        beam.unread,
        plan.sampling,
        1,
        seed=seed,
        index=index,
        memory=beam.memory,
        min_tokens=max(0, options.min_tokens - written),
        # A penalty may take away as many as other beams have chosen.
        alternatives=min(looked_at + (options.num_beams if options.diversity_penalty else 0), plan.vocab_size),
        allowed=plan.allowed,
        guide=beam.guide,
        asked=array("i", () if beam.wanted is None else beam.wanted.asked()),
    )


def _choose(plan: Plan, group: Group, best: Sequence[_Candidate], width: int) -> None:
    """Finishes what ends, and lets the best of the rest go on."""
    options, parents = plan.options, group.beams
    length, ends = len(parents[0].tokens) + 1, plan.ends
    last = length == options.max_tokens
    onward: list[_Candidate] = []
    for rank, candidate in enumerate(best):
        over = last or candidate[2] in ends or _completes(parents[candidate[1]], candidate[2])
        if over and (rank < width or plan.phrases):  # of several banks in turn, each has its own first
            _finish(plan, group, candidate, width)
        elif not over and len(onward) < width:
            onward.append(candidate)
    group.beams = _onward(parents, onward)
    group.over = not group.beams or _settled(plan, group, length, width)


def _onward(parents: Sequence[Beam], chosen: Sequence[_Candidate]) -> list[Beam]:
    """The chosen ones, each with a past of its own."""
    heirs, beams = [0] * len(parents), []
    for _, place, _, _ in chosen:
        heirs[place] += 1
    for minus, place, token, _ in chosen:
        heirs[place] -= 1
        beams.append(_child(parents[place], token, -minus))
        _follow(beams[-1], parents[place], heirs[place] > 0)
    return beams


def _child(parent: Beam, token: int, score: float) -> Beam:
    return Beam(
        parent.state,
        array("i", (token,)),
        (*parent.tokens, token),
        score,
        parent.memory,
        parent.guide,
        parent.wanted and parent.wanted.behind(token),
    )


def _follow(beam: Beam, parent: Beam, copied: bool) -> None:
    """Gives a beam a past of its own: the parent's, or a copy if others need it too."""
    if copied:
        beam.state = parent.state.copy()
    if parent.memory is not None:
        beam.memory = parent.memory.copy() if copied else parent.memory
        beam.memory.add(beam.unread, True)
    if parent.guide is not None:
        beam.guide = parent.guide.copy() if copied else parent.guide
        beam.guide.accept(beam.tokens[-1])


def _completes(beam: Beam, token: int) -> bool:
    """Whether a form is complete behind a token, and nothing more may come."""
    return beam.guide is not None and beam.guide.behind(token)[0] == "stop"


def _power(plan: Plan) -> float:
    asked = 0.0 if plan.options.without_replacement else plan.options.length_penalty
    return 1.0 if asked is None else float(asked)


def _ended(plan: Plan, beam: Beam, token: int, total: float) -> Found:
    """A text that ends with a token: its end, or its last. total: what is divided for the score."""
    ended = token in plan.ends
    reason, complete = (None, None) if beam.guide is None else beam.guide.behind(token)
    tokens = beam.tokens if ended else (*beam.tokens, token)
    finish = "stop" if ended else reason or "length"
    wanted = beam.wanted if beam.wanted is None or ended else beam.wanted.behind(token)
    satisfied, missing = _judged(complete, wanted)
    score = total / (len(beam.tokens) + 1) ** _power(plan)
    return Found(tokens, finish, token if ended else None, score, satisfied, missing)


def _judged(form: bool | None, wanted: Wanted | None) -> tuple[bool | None, tuple[str | tuple[int, ...], ...]]:
    """Whether a text is as it was asked for, and what it lacks. form: whether it has its form, if it has one."""
    if wanted is None:
        return form, ()
    return form is not False and not wanted.missing, wanted.missing


def _finish(plan: Plan, group: Group, candidate: _Candidate, width: int) -> None:
    minus, place, token, _ = candidate
    group.finished.append(_ended(plan, group.beams[place], token, -minus))  # behind those that are as good
    group.finished.sort(key=lambda one: one.rank)
    del group.finished[width:]


def _settled(plan: Plan, group: Group, length: int, width: int) -> bool:
    """Whether what is finished stays the best, by the rule that was chosen."""
    options = plan.options
    if len(group.finished) < width or group.finished[-1].satisfied is False:
        return False
    if options.early_stopping is True:
        return True
    power = _power(plan)
    farthest = options.max_tokens if options.early_stopping == "never" and power > 0 else length
    return not max(beam.score for beam in group.beams) / farthest**power > group.finished[-1].score


def _cut(plan: Plan, beam: Beam, finish: str) -> Found:
    score = beam.score / max(1, len(beam.tokens)) ** _power(plan)
    satisfied, missing = _judged(None if beam.guide is None else beam.guide.complete, beam.wanted)
    none = not beam.tokens and not plan.options.without_replacement  # behind all others, whatever their length
    return Found(beam.tokens, finish, None, -math.inf if none else score, satisfied, missing)


def by_risk(found: Sequence[Found], texts: Sequence[Sequence[str | int]]) -> list[Found]:
    """Texts that a search has found in the order of their expected likeness to what is right, if that is one of them
    with a probability that grows as e to its score (minimum Bayes risk: Kumar & Byrne 2004). Likeness is the F1 of
    their words, as in ROUGE-1. Those that are as they should be stay before the others. The work grows with the square
    of the number of texts: of 64 with 100 words it takes 0.1 seconds.

    Parameters
    ----------
    found : sequence of Found
    texts : sequence of sequences
        Their words; tokens, where there are no words.
    """
    best = max(one.score for one in found)
    if best == -math.inf:  # nothing was written
        return list(found)
    weights, words = [math.exp(one.score - best) for one in found], [Counter(text) for text in texts]
    likeness = [0.0] * len(found)
    for i, j in combinations_with_replacement(range(len(found)), 2):
        f1 = 1.0  # of texts without words, too
        if words[i] != words[j]:
            f1 = 2 * (words[i] & words[j]).total() / (len(texts[i]) + len(texts[j]))
        likeness[i] += weights[j] * f1
        likeness[j] += weights[i] * f1 * (i != j)
    order = sorted(range(len(found)), key=lambda n: (*found[n].rank[:2], -likeness[n]))
    return [found[n] for n in order]


# ---- sampling without replacement ------------------------------------------------------------------------


def stochastic_beams(decoder: _engine.Decoder, plan: Plan, start: Beam, n: int, seed: int, over: Over) -> list[Found]:
    """n different texts in the order in which they are drawn, each by its probability among all texts that were not
    drawn yet (stochastic beam search: Kool et al. 2019).

    A beam's key is its log-probability plus Gumbel noise. Those of its children are such that the largest of them is
    the parent's, so that the n largest keys of all texts are found among the children of the n largest of each length.
    A text that may end with several tokens counts once: the largest of their keys is that of all together.
    """
    live, keys, reason = [_copy(start)], [0.0], None
    done: list[tuple[float, Found]] = []
    while live and plan.options.max_tokens and (reason := over()) is None:
        looked_at = min(n + max(0, len(plan.ends) - 1), plan.vocab_size)
        jobs = [_job(plan, beam, looked_at, seed, index) for index, beam in enumerate(live)]
        drawn = decoder.expand(jobs, draw=True)
        children: list[tuple[float, int, int, float]] = []  # as candidates, by their keys
        for place, (beam, key, (tokens, logprobs, noisy)) in enumerate(zip(live, keys, drawn, strict=True)):
            if not tokens:
                done.append((key, _cut(plan, beam, "unsatisfiable")))
            within, ended = _within(key, [beam.score + one for one in noisy]), False
            for k, token, logprob in zip(within, tokens, logprobs, strict=True):
                if not (ended and token in plan.ends):
                    children.append((-k, place, token, logprob))
                ended |= token in plan.ends
        children.sort()
        least = sorted([*(-key for key, _ in done), *(child[0] for child in children)])[:n][-1]
        done = [one for one in done if -one[0] <= least]
        onward: list[_Candidate] = []
        for child in children:
            minus, place, token, logprob = child
            beam, last = live[place], len(live[place].tokens) + 1 == plan.options.max_tokens
            if minus > least:
                break
            if last or token in plan.ends or _completes(beam, token):
                done.append((-minus, _ended(plan, beam, token, beam.score + logprob)))
            else:
                onward.append(child)
        parents, live = live, _onward(live, onward)
        for beam, (_, place, _, logprob) in zip(live, onward, strict=True):
            beam.score = parents[place].score + logprob
        keys = [-minus for minus, *_ in onward]
    done += [(key, _cut(plan, beam, reason or "length")) for key, beam in zip(keys, live, strict=True)]
    return [found for _, found in sorted(done, key=lambda one: -one[0])][:n]


def _within(key: float, noisy: Sequence[float]) -> list[float]:
    """Keys of children, given that the largest is the parent's (numerically stable, as in the paper's appendix).
    noisy: the log-probabilities of their texts with noise, the largest first."""
    found = []
    for one in noisy:
        below = one - noisy[0]
        v = key - one + math.log1p(-math.exp(below)) if below < 0 else -math.inf
        found.append(key - max(0.0, v) - math.log1p(math.exp(-abs(v))))
    return found


# ---- exact search --------------------------------------------------------------------------------------

TOGETHER = 8
"""Texts that exact search follows at once: as many as the engine computes side by side."""

MOST_SUCCESSORS = 512
"""Of a text that are looked at; what others could still give is in the bound."""


@dataclass(frozen=True)
class Proof:
    """What an exact search has found.

    Attributes
    ----------
    found : list of Found
        The likeliest texts, the best first.
    proven : bool
        Whether there are none better.
    bound : float
        No other text has a better score than this.
    steps : int
        Texts that were followed.
    reason : str or None
        Why nothing is proven: ``"steps"`` (of which there are as many as were allowed), ``"successors"`` (of a text
        that were not all looked at), ``"deadline"`` or ``"cancelled"``.
    """

    found: list[Found]
    proven: bool
    bound: float
    steps: int
    reason: str | None


class _Ahead(NamedTuple):
    """A text in the making, and how it may go on: the likeliest first."""

    beam: Beam
    tokens: list[int]
    logprobs: list[float]


class _Exact:
    """Best-first search: the state of `exact_search`. What a text remembers is made when it is followed, and forgotten
    then: thousands of texts are in the making."""

    def __init__(self, plan: Plan, start: Beam, n: int, known: list[Found]) -> None:
        self.plan, self.start, self.n = plan, start, n
        self.best: list[Found] = []
        for one in known:
            self.best = _among(self.best, one, n)
        self.heap: list[tuple[float, int, _Ahead, int]] = []
        self.order, self.steps, self.lost = 0, 0, -math.inf

    @property
    def worst(self) -> float:
        return self.best[-1].score if len(self.best) == self.n else -math.inf

    @property
    def open(self) -> bool:
        return bool(self.heap) and -self.heap[0][0] > self.worst

    def follow(self, decoder: _engine.Decoder, beams: list[Beam]) -> None:
        """Looks at what may come behind texts."""
        self.steps += len(beams)
        size = self.plan.vocab_size
        jobs = [_job(self.plan, beam, min(MOST_SUCCESSORS, size)) for beam in beams]
        for beam, (tokens, logprobs) in zip(beams, decoder.expand(jobs), strict=True):
            if len(tokens) >= MOST_SUCCESSORS and size > MOST_SUCCESSORS:
                lost = _bound(self.plan, beam.score + logprobs[MOST_SUCCESSORS - 1], len(beam.tokens) + 1)
                self.lost = max(self.lost, lost)
            order = sorted(range(len(tokens)), key=lambda place: -logprobs[place])
            self._offer(_Ahead(beam, [tokens[i] for i in order], [logprobs[i] for i in order]), 0)
            beam.memory = None  # what it remembered; the form stays, for the tokens to come

    def _offer(self, ahead: _Ahead, rank: int) -> None:
        if rank == len(ahead.tokens):
            return
        bound = _bound(self.plan, ahead.beam.score + ahead.logprobs[rank], len(ahead.beam.tokens) + 1)
        if bound > self.worst:
            self.order += 1
            heapq.heappush(self.heap, (-bound, self.order, ahead, rank))

    def chosen(self) -> list[Beam]:
        """The likeliest texts in the making; those that are whole are among the best, or never will be."""
        beams: list[Beam] = []
        while self.open and len(beams) < TOGETHER:
            _, _, ahead, rank = heapq.heappop(self.heap)
            self._offer(ahead, rank + 1)
            beam, token, logprob = ahead.beam, ahead.tokens[rank], ahead.logprobs[rank]
            whole = _whole(self.plan, beam, token, logprob)
            if whole is None:
                beams.append(self._grown(beam, token, logprob))
            elif whole.satisfied is not False:
                self.best = _among(self.best, whole, self.n)
        return beams

    def _grown(self, parent: Beam, token: int, logprob: float) -> Beam:
        child, start = _child(parent, token, parent.score + logprob), self.start
        child.state = parent.state.copy()  # others begin with it too
        child.memory = start.memory and start.memory.copy()
        if child.memory is not None:
            child.memory.add(array("i", child.tokens), True)
        child.guide = parent.guide and parent.guide.copy()
        if child.guide is not None:
            child.guide.accept(token)
        return child


def exact_search(
    decoder: _engine.Decoder, plan: Plan, start: Beam, n: int, most_steps: int, over: Over, known: list[Found]
) -> Proof:
    """The n texts of the best scores of all there are: best-first search (Dijkstra 1959), which a score that only
    falls with length makes exact. ``known``: texts that were found already, with which the search need not begin at
    nothing.
    """
    search, reason = _Exact(plan, start, n, known), None
    if plan.options.max_tokens:
        search.follow(decoder, [_copy(start)])
    while search.open and (reason := "steps" if search.steps >= most_steps else over()) is None:
        if beams := search.chosen():
            search.follow(decoder, beams)
    bound = max(search.lost, -search.heap[0][0] if search.heap else -math.inf)
    proven = bound <= search.worst
    reason = None if proven else reason or "successors"
    return Proof(search.best, proven, max(bound, search.worst), search.steps, reason)


def _whole(plan: Plan, beam: Beam, token: int, logprob: float) -> Found | None:
    """The text that ends with this token, if it does."""
    if token not in plan.ends and len(beam.tokens) + 1 < plan.options.max_tokens and not _completes(beam, token):
        return None
    return _ended(plan, beam, token, beam.score + logprob)


def _bound(plan: Plan, total: float, length: int) -> float:
    """No text whose first so many tokens (its end counts) have this log-probability has a better score."""
    power = _power(plan)
    return total / math.pow(plan.options.max_tokens if power > 0 else length, power)


def _among(best: list[Found], one: Found, n: int) -> list[Found]:
    """The n best, of each text the likeliest: it may end in several ways."""
    same = next((other for other in best if other.tokens == one.tokens and other.finish == one.finish), None)
    if same is not None and same.score >= one.score:
        return best
    return sorted([*(other for other in best if other is not same), one], key=lambda found: -found.score)[:n]
