# SPDX-License-Identifier: Apache-2.0
"""Texts that meet their goals: what goals ask of the decoder, and what a text has made of them."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlm import _engine, controls
from fastlm.constraints import grammar_of
from fastlm.goals import forms
from fastlm.goals.automaton import Bounds
from fastlm.goals.conflicts import check, listed
from fastlm.goals.guides import Continued, WishForm, WishGuide
from fastlm.goals.kinds import UNITS, Deadline, Goal, Include, Length, Matches, Novel, Words, words_of
from fastlm.goals.soft import Brief, Soft
from fastlm.goals.tradeoffs import GIVEN_UP, Lane, Search, Tradeoff, explored, front, measured, ranked
from fastlm.model import is_batch, over_when, seed_of
from fastlm.options import FORMS, Completion, GenerationOptions, acts, timed, used
from fastlm.scoring import score_each

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastlm.model import Model

DRAFTS = 8
"""Of each text, of which the best is taken."""

PLAIN = 4
"""Texts without goals that say what likely ones are."""

PLACES = 24
"""In a draft that are tried for a word."""

DRAFTING = 0.8
"""Share of a `Deadline` after which nothing more is written: the rest is for weighing what there is."""

NOISE = 0.5
"""Of Gumbel's kind, on mean log-probabilities, so that drafts differ in where they say a word."""


_FORMS = tuple(one.name for one in fields(Matches))
"""Options that say what a goal may say, too."""

_WITHOUT = (
    *("num_beams", "must_include", "without_replacement", "stop", "stop_repeats", "token_healing", "prompt_logprobs"),
    "logits_processor",
)


@dataclass(frozen=True)
class Outcome:
    """What became of a goal.

    Attributes
    ----------
    goal : Goal
    achieved : tuple of str, int or bool
        The words of it that the text says; its length; whether it has the form.
    satisfied : bool
    shortfall : float
        By how much it is missed: words missing, or said all the same; the length's distance from what was asked for;
        tokens copied or milliseconds too many; 1 for a form; what a soft goal lacks of ``at_least``. 0 if it is
        satisfied.
    price : float
        By how much less likely the text is than those written without any goals: natural log-probability a token, of
        the mean of some of these; NaN if there was no time to write them. It is that of all goals together.
    """

    goal: Goal
    achieved: Any
    satisfied: bool
    shortfall: float
    price: float = math.nan

    def __str__(self) -> str:
        if isinstance(self.goal, Soft):
            return f"{self.goal}: {self.achieved:.3g}" + ("" if self.satisfied else f", missed by {self.shortfall:.3g}")
        return f"{self.goal}: {'met' if self.satisfied else f'missed by {self.shortfall:,.6g}'}"


def generate(model: Model, prompt: Any, goals: Sequence[Goal], search: Search | None, given: Mapping[str, Any]) -> Any:
    """`fastlm.Model.generate` with goals.

    Raises
    ------
    ConflictError
        If no text can meet the hard goals.
    """
    if model.info["task"] != "lm":
        raise ValueError("goals: expected a language model, which writes on from a text")
    begin, goals = time.perf_counter(), listed(goals)
    if search is not None and not isinstance(search, Search):
        raise TypeError(f"search={search!r:.60}: expected a fastlm.goals.Search")
    if search is not None and all(goal.hard for goal in goals):
        raise ValueError("search: it is for soft goals, and there are none: leave it out")
    options = _options(goals, given)
    plan, plain = model._plan(options), model._plan({**given, "max_tokens": options["max_tokens"]})
    if plan.temperature == 0 and _explores(goals):
        raise ValueError("temperature=0: of soft goals texts that differ have more or less: expected more than 0")
    limits = model._limits(plan.options)
    asked: list[Goal] = [_MaxTokens("tokens", max=given["max_tokens"])] if "max_tokens" in given else []
    asked += [Matches(**{name: given[name]}) for name in _FORMS if given.get(name) is not None]
    check([*goals, *asked], model)
    writer = _Writer(model, goals, plan, plain, search or Search(), limits, begin)
    # At temperature 0 only where words are put is drawn.
    seed = seed_of({"seed": 0} | options if plan.temperature == 0 else options)
    each = [writer.write(one, seed) for one in (prompt if is_batch(prompt) else [prompt])]
    found = each if plan.options.n > 1 else [one for [one] in each]
    return found if is_batch(prompt) else found[0]


class _MaxTokens(Length):
    """The option of this name as a goal."""

    def __str__(self) -> str:
        return f"{super().__str__()} (max_tokens)"


def _explores(goals: Sequence[Goal]) -> bool:
    """Whether texts are forked as they grow: what words are put into is written to its end instead."""
    return any(isinstance(goal, Soft) for goal in goals) and not any(isinstance(goal, Include) for goal in goals)


def _options(goals: Sequence[Goal], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that do what goals ask for, as far as there are some."""
    options = dict(given)
    most = Bounds.of(goals, "tokens").most
    room = options.get("max_tokens", _room(goals))
    options["max_tokens"] = room if most is None or not isinstance(room, int) else min(room, most)
    for name in _WITHOUT:
        if acts(name, options.get(name)):
            raise ValueError(f"{name}: goals are met by a search of their own, which has none: leave it out")
    if options.get("best_of") is not None and _explores(goals):
        raise ValueError("best_of: with soft goals say Search(lanes=...)")
    if options.get("contrastive_model") is not None and not all(goal.hard for goal in goals):
        raise ValueError("contrastive_model: say Unlike(model) among the goals")
    if limits := [goal.ms for goal in goals if isinstance(goal, Deadline)]:
        options["deadline_ms"] = min([DRAFTING * min(limits), *filter(None, [options.get("deadline_ms")])])
    if novel := [goal for goal in goals if isinstance(goal, Novel)]:
        options |= _corpus(novel, options)
    if options.get("bad_words") and any(isinstance(goal, Include) for goal in goals):
        raise ValueError("bad_words: beside Include say Exclude(words) among the goals")
    if options.get("min_tokens"):
        raise ValueError('min_tokens: say Length("tokens", min=...) among the goals')
    if not isinstance(options.get("logprobs"), (bool, type(None))):
        raise ValueError(f"logprobs={options['logprobs']!r}: with goals there are no alternatives: say True")
    wanted = [goal for goal in goals if isinstance(goal, Matches)]
    if wanted and any(options.get(name) is not None for name in FORMS):
        raise ValueError("goals: Matches together with another form is not supported: leave one out")
    return options | _form(wanted)


def _corpus(novel: Sequence[Novel], options: Mapping[str, Any]) -> dict[str, Any]:
    """One corpus as an option."""
    if options.get("corpus") is not None or any(goal.corpus is not novel[0].corpus for goal in novel):
        raise ValueError("goals: Novel takes one corpus: build an index of all files")
    return {"max_copied": min(goal.max_copied for goal in novel), "corpus": novel[0].corpus}


def _room(goals: Sequence[Goal]) -> int:
    """Tokens that suffice for what is asked, if nobody says how many there may be."""
    least = {unit: Bounds.of(goals, unit).least for unit in UNITS}
    return max(128, least["tokens"], *(size * least[unit] for unit, size in _SIZES.items()))


_SIZES = {"characters": 1, "words": 4, "sentences": 40}
"""Tokens that one of them takes, at most for the usual."""


def _form(wanted: Sequence[Matches]) -> dict[str, Any]:
    """Forms as an option."""
    if not wanted:
        return {}
    if len(wanted) == 1:
        return wanted[0].form
    regexes = [goal.regex for goal in wanted if goal.regex is not None]
    if len(regexes) < len(wanted):
        raise ValueError("goals: several forms must be regular expressions: leave a schema or grammar out")
    return {"grammar": forms.together(regexes)}


@dataclass(frozen=True)
class _Draft:
    """A text in the making: its tokens; those of the beginning that stay, behind a whole word."""

    tokens: tuple[int, ...] = ()
    kept: int = 0


class _Writer:
    """Writes texts that meet goals: several drafts are drawn for each; a word that a draft lacks is put where the model
    finds it likeliest, and the draft goes on from there; of those that meet the goals the likeliest is taken.

    Parameters
    ----------
    model : Model
    goals : sequence of Goal
        Of soft ones those that the drafts have most of count, and unless words are asked for the drafts are explored
        with regard to them.
    plan, plain : Plan
        With what hard goals ask for, and without.
    search : Search
    limits : dict
        When to stop.
    begin : float
        When it began.
    """

    def __init__(
        self,
        model: Model,
        goals: Sequence[Goal],
        plan: controls.Plan,
        plain: controls.Plan,
        search: Search,
        limits: dict[str, Any],
        begin: float,
    ) -> None:
        self._model, self._goals, self._plan, self._plain, self._search = model, list(goals), plan, plain, search
        self._limits, self._begin = limits, begin
        self._soft = [goal for goal in goals if isinstance(goal, Soft)]
        self._include = [goal for goal in goals if isinstance(goal, Include)]
        own = [goal for goal in goals if isinstance(goal, (Words, Length))]
        self._own = own
        self._whole = self._wish(own)
        self._drafted = self._wish([goal for goal in own if not isinstance(goal, Include)])
        self._count = max(plan.options.n, plan.options.best_of or DRAFTS)
        self._brief = any(isinstance(goal, Brief) for goal in goals)
        self._trims = self._brief or bool(self._include) or any(isinstance(goal, Length) for goal in goals)

    def _wish(self, goals: Sequence[Goal]) -> WishForm:
        """Kept for the next call."""
        plan, kept = self._plan, self._model._wishes
        allowed = None if plan.allowed is None else plan.allowed.tobytes()
        key = tuple(goals), tuple(sorted(plan.ends)), plan.options.max_tokens, id(plan.form), allowed
        if (found := kept.get(key)) is None:
            found = WishForm(self._model, goals, sorted(plan.ends), plan.options.max_tokens, plan.form, plan.allowed)
            controls.remember(kept, controls.KEPT_FORMS, key, found)
        return found

    def write(self, prompt: Any, seed: int) -> list[Completion]:
        """The n best of the drafts for one prompt."""
        ids = self._model._ids(prompt)
        if _explores(self._goals):
            written = self._explored(prompt, ids, seed)
        else:
            written = self._drafts(ids, np.random.default_rng(seed))
        return self._best(prompt, ids, written, seed)

    def _explored(self, prompt: Any, ids: array[int], seed: int) -> list[Completion]:
        """Texts that were forked and given up with regard to the soft goals."""
        options = replace(self._plan.options, logprobs=True, n=1, best_of=None)
        plan = replace(self._plan, options=options, form=self._whole if self._own else self._plan.form)
        count, echo = max(self._search.lanes, self._plan.options.n), self._model._echo(prompt, ids)
        lanes = explored(self._model, echo, ids, self._soft, plan, self._search, count, seed, self._limits)
        timings, usage = timed(self._begin, len(ids)), used(len(ids), 0)
        return [Completion("", lane.tokens, lane.finish, lane.logprobs, seed, usage, timings) for lane in lanes]

    def _drafts(self, ids: array[int], random: np.random.Generator) -> list[Completion]:
        """Texts into which the words that are asked for were put."""
        drafts, over = [_Draft() for _ in range(self._count)], over_when(self._limits)
        for _ in words_of(self._include):
            if over():
                break
            written = self._written(ids, drafts, self._drafted, random)
            drafts = [
                draft if over() else self._with_word(ids, one, draft, random)
                for one, draft in zip(written, drafts, strict=True)
            ]
        return self._written(ids, drafts, self._whole, random)

    def _written(
        self, ids: array[int], drafts: Sequence[_Draft], form: WishForm, random: np.random.Generator
    ) -> list[Completion]:
        """Each draft from what is kept of it to an end."""
        prompts, plans = [], []
        for draft in drafts:
            kept = draft.tokens[: draft.kept]
            room = replace(self._plan.options, max_tokens=self._plan.options.max_tokens - len(kept), n=1, best_of=None)
            own = Continued(form, kept, closed=bool(kept)) if self._own else self._plan.form
            plans.append(replace(self._plan, options=room, form=own))
            prompts.append(ids + array("i", kept))
        seeds = random.integers(2**62, size=len(drafts)).tolist()
        found = self._model._write(list(prompts), prompts, plans, seeds, self._limits)
        whole = [[*draft.tokens[: draft.kept], *one.token_ids] for draft, [one] in zip(drafts, found, strict=True)]
        return [replace(one, token_ids=tokens) for tokens, [one] in zip(whole, found, strict=True)]

    # ---- where a word belongs --------------------------------------------------------------------------

    def _with_word(self, ids: array[int], written: Completion, draft: _Draft, random: np.random.Generator) -> _Draft:
        """The draft cut behind a word that was missing, where the model finds it likeliest; the same if none is."""
        model, tokens = self._model, written.token_ids
        text = model._need_tokenizer().decode(tokens, context=ids)
        missing = [word for goal in self._include for word in goal.words if word not in goal.said(text)]
        if not missing:
            return _Draft(tuple(tokens), self._said_all(ids, tokens, draft.kept))
        ways = list(self._ways(ids, tokens, draft.kept, missing))
        if not ways:
            return draft
        likely = np.array([mean for _, mean in ways]) + NOISE * random.gumbel(size=len(ways))
        best = ways[int(likely.argmax())][0]
        return _Draft(best, len(best))

    def _ways(
        self, ids: array[int], tokens: Sequence[int], kept: int, missing: Sequence[str]
    ) -> Iterator[tuple[tuple[int, ...], float]]:
        """Beginnings of a draft with a missing word behind them, wherever there is room then for what else is needed;
        and the mean log-probability of the word's tokens."""
        words = [array("i", self._whole.alphabet.spelled(f" {word}")) for word in missing]
        places = set(self._places(tokens, kept))
        guide, state = self._whole.guide(None, ids), _engine.State(self._model._engine)
        with self._model._decoder() as decoder:
            decoder.feed(state, ids)
            for at in range(len(tokens) + 1):
                for way in words if at in places else ():
                    if _has_room(guide, way):
                        yield (*tokens[:at], *way), sum(decoder.score(state.copy(), way)) / len(way)
                if at < len(tokens):
                    guide.accept(tokens[at])
                    decoder.feed(state, array("i", [tokens[at]]))

    def _said_all(self, ids: array[int], tokens: Sequence[int], kept: int) -> int:
        """So many tokens of a draft say all words."""
        known = self._model._need_tokenizer()
        for at in range(kept, len(tokens)):
            text = known.decode(tokens[:at], context=ids)
            if not self._whole.in_words[tokens[at]] and all(goal.met(text) for goal in self._include):
                return at
        return len(tokens)

    def _places(self, tokens: Sequence[int], kept: int) -> list[int]:
        """Where a word may begin in a draft: some of them."""
        known = self._model._need_tokenizer()
        found = [at for at in range(kept, len(tokens)) if known.pieces[tokens[at]][:1] in (b" ", b"\n")]
        return found[:: 1 + len(found) // PLACES] or [len(tokens)]

    # ---- the best ------------------------------------------------------------------------------------------

    def _best(self, prompt: Any, ids: array[int], written: list[Completion], seed: int) -> list[Completion]:
        """Those that meet their goals, end with a sentence, and are the likeliest, in this order."""
        texts, whole = zip(*(kept for one in written for kept in self._kept(one, ids)), strict=True)
        said = ([*ids, *one.token_ids] for one in texts)
        scores = [one.logprobs[len(ids) :] for one in score_each(self._model, said)]
        plain = self._plain_mean(ids, seed)
        found = [self._completion(prompt, ids, *one, seed, plain) for one in zip(texts, scores, strict=True)]
        if self._soft:
            return self._chosen(prompt, ids, found, scores, plain)
        keys = [(not one.satisfied, not whole[n], -_mean(scores[n]), n) for n, one in enumerate(found)]
        return [found[n] for *_, n in sorted(keys)[: self._plan.options.n]]

    def _chosen(
        self, prompt: Any, ids: array[int], found: list[Completion], scores: list[Sequence[float]], plain: float
    ) -> list[Completion]:
        """Of those that meet the hard goals, or else of all, the ones that are chosen for what they have of the soft
        ones."""
        rows = [n for n, one in enumerate(found) if one.satisfied] or list(range(len(found)))
        lanes = [Lane(self._model._echo(prompt, ids), ids) for _ in rows]
        for lane, n in zip(lanes, rows, strict=True):
            lane.extend(self._model, found[n].token_ids, scores[n])
        values = measured(self._model, self._soft, lanes)
        order = ranked(values, self._soft, self._search.choose)
        best = set(front(values))
        order = [n for n in order if n in best] + [n for n in order if n not in best]
        texts = [self._with_soft(found[rows[n]], values[n], _mean(scores[rows[n]]), plain) for n in order]
        tradeoff = Tradeoff(self._soft, values, texts[: len(best)], order[: len(best)])
        return [replace(one, tradeoff=tradeoff) for one in texts[: self._plan.options.n]]

    def _with_soft(self, one: Completion, values: npt.NDArray[np.float64], mean: float, plain: float) -> Completion:
        """With what became of the soft goals, in the order of all."""
        hard, soft = iter(one.goals), iter(zip(self._soft, values.tolist(), strict=True))
        goals = [next(hard) if goal.hard else _soft_outcome(*next(soft), plain - mean) for goal in self._goals]
        return replace(one, goals=goals, satisfied=all(outcome.satisfied for outcome in goals))

    def _plain_mean(self, ids: array[int], seed: int) -> float:
        """Of texts written without goals the mean log-probability of a token."""
        plan = replace(self._plain, options=replace(self._plain.options, logprobs=None, n=1, best_of=None))
        seeds = np.random.default_rng([seed, 1]).integers(2**62, size=PLAIN).tolist()
        groups = self._model._write([ids] * PLAIN, [ids[:]] * PLAIN, [plan] * PLAIN, seeds, self._limits)
        texts = ([*ids, *one.token_ids] for [one] in groups if one.token_ids)
        means = [_mean(one.logprobs[len(ids) :]) for one in score_each(self._model, texts)]
        return float(np.mean(means)) if means else math.nan

    def _kept(self, one: Completion, ids: array[int]) -> list[tuple[Completion, bool]]:
        """What is worth weighing of a text, and whether that ends with a sentence: all up to the last end of one; with
        `Brief` also what comes up to the first. Of a text that was given up only what ends so."""
        if not self._trims:
            return [(one, False)]
        ends, size, given_up = self._ends(one.token_ids, ids), len(one.token_ids), one.finish_reason == GIVEN_UP
        cuts = [] if given_up else ends[-1:] or [size]
        if self._brief:
            cuts += ends[:1] + (ends[-1:] if given_up else [])
        return [(self._cut(one, end), end in ends) for end in dict.fromkeys(cuts)]

    def _ends(self, tokens: Sequence[int], ids: array[int]) -> list[int]:
        """Where sentences end and all goals are met."""
        guide, found = self._whole.guide(None, ids), []
        for at, token in enumerate(tokens, 1):
            guide.accept(token)
            if guide.ended and guide.complete:
                found.append(at)
        return found

    def _cut(self, one: Completion, end: int) -> Completion:
        if end == len(one.token_ids) and one.finish_reason != GIVEN_UP:
            return one
        return replace(one, token_ids=one.token_ids[:end], finish_reason="stop", stop_reason=None)

    def _completion(
        self,
        prompt: Any,
        ids: array[int],
        one: Completion,
        logprobs: Sequence[float],
        seed: int,
        plain: float,
    ) -> Completion:
        model, options, tokens = self._model, self._plan.options, one.token_ids
        text = model._need_tokenizer().decode(tokens, context=ids)
        ms, price = 1e3 * (time.perf_counter() - self._begin), plain - _mean(logprobs)
        outcomes = [replace(outcome(goal, text, tokens, ms), price=price) for goal in self._goals if goal.hard]
        return replace(
            one,
            text=model._echo(prompt, ids) + text if options.echo else text,
            logprobs=list(logprobs) if options.logprobs is True else None,
            seed=seed,
            usage=used(len(ids), len(tokens)),
            timings=timed(self._begin, len(ids) + len(tokens)),
            goals=outcomes,
            satisfied=all(outcome.satisfied for outcome in outcomes),
        )


# ---- what became of them -------------------------------------------------------------------------------


def _has_room(guide: WishGuide, way: Sequence[int]) -> bool:
    """Whether a word may be said, and all that is still needed behind it."""
    guide = guide.copy()
    try:
        for token in way:
            guide.accept(token)
    except ValueError:  # not in this form
        return False
    guide.close_word()
    return guide.fits


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / max(1, len(logprobs))


def _soft_outcome(goal: Soft, value: float, price: float) -> Outcome:
    shown = goal.shown(value)
    lacks = 0.0 if goal.at_least is None else max(0.0, goal.at_least - shown)
    return Outcome(goal, shown, not lacks, lacks, price)


def outcome(goal: Goal, text: str, tokens: Sequence[int] = (), ms: float = 0.0) -> Outcome:
    """What a text, that took so long to write, has made of a hard goal."""
    if isinstance(goal, Novel):
        copied = int(goal.corpus.longest(tokens).max(initial=0))
        return Outcome(goal, copied, copied <= goal.max_copied, max(0, copied - goal.max_copied))
    if isinstance(goal, Deadline):
        return Outcome(goal, ms, ms <= goal.ms, max(0.0, ms - goal.ms))
    if isinstance(goal, Words):
        said = goal.said(text)
        wrong = len(goal.words) - len(said) if isinstance(goal, Include) else len(said)
        return Outcome(goal, said, not wrong, wrong)
    if isinstance(goal, Length):
        length = goal.of(text, len(tokens))
        assert length is not None
        over = 0 if goal.max is None else max(0, length - goal.max)
        return Outcome(goal, length, goal.within(length), max(over, goal.min - length, 0))
    if isinstance(goal, Matches):
        grammar = grammar_of(GenerationOptions.of(goal.form))
        assert grammar is not None
        met = forms.matches(grammar, text)
        return Outcome(goal, met, met, int(not met))
    raise TypeError(f"expected a hard goal, found {goal!r:.60}")
