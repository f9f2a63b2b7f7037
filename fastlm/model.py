# SPDX-License-Identifier: Apache-2.0
"""Load a model, and generate, stream and score with it."""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
import time
from array import array
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from importlib import resources
from numbers import Integral, Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, cast, overload

import numpy as np

from fastlm import _engine, controls, tokenizer
from fastlm.codec import compress, decompress
from fastlm.constraints import Form, Guide, Healing, Wanted, healed
from fastlm.options import (
    DRAWING,
    RECOMMENDABLE,
    WITHOUT_BEAMS,
    Completion,
    GenerationOptions,
    Options,
    Score,
    Timings,
    acts,
    check_option,
    timed,
    used,
)
from fastlm.scoring import score_each
from fastlm.search import Beam, Found, Over, Proof, beam_searches, by_risk, exact_search, stochastic_beams
from fastlm.state import PrefixCache, Session, State, restored, resumed
from fastlm.suggest import Suggestions, Words, suggest
from fastlm.writing import Text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastlm.goals import Goal, Search
    from fastlm.goals.guides import WishForm

Prompt: TypeAlias = "str | Sequence[int]"

BUNDLED = ("stories",)
"""Names of the models that come with the package."""

_KEPT_PLANS = 256

_FIXED = (str, float, int, type(None))

_OF_A_CALL = ("n", "best_of", "num_beams", "without_replacement", "deadline_ms", "cancelled", "contrastive_model")
"""Options that all prompts of a call share."""

_OF_A_TEXT = (
    *("contrastive_model", "logits_processor", "num_beams", "token_healing", "n", "best_of", "without_replacement"),
    *("max_tokens", "echo", "stop", "stop_repeats", "logprobs", "prompt_logprobs", "deadline_ms", "cancelled"),
    *("attention", "replace_unknown", "coverage_penalty", "keep_names", "mbr"),
)
"""Options that do nothing to what may come next, or are not looked at there."""

_OF_A_WHOLE_TEXT = ("n", "num_beams", "best_of", "logprobs", "prompt_logprobs", "attention", "replace_unknown")
"""Options of which a stream has none."""

_SEARCHES = 32  # side by side: enough to fill the engine's columns, and few enough to hold the states of their beams

_IDLE_DECODERS = 4  # kept for the next call: their memory is touched already, which a new one's is not


class Model:
    """A language model, mapped from its file. Immutable; any number of threads may use it at once.

    Made by `load`. Attributes: ``vocab_size`` (int), ``tokenizer`` (or None), ``bos`` and ``eos`` (token
    ids that start and end a text, or None), ``metadata`` (mapping: the file's keys to values), ``recommended``
    (mapping: sampling settings that are the defaults of `generate`).
    """

    refuses: Mapping[str, str] = {
        "attention": "a language model has no source to look at",
        "replace_unknown": "a language model has no source to take words from",
        "coverage_penalty": "a language model has no source to look at",
        "keep_names": "a language model has no source with names",
    }
    """Options that this kind of model has not, and why."""

    def __init__(self, engine: _engine.Model, prefix_cache_bytes: int = 0) -> None:
        self._engine = engine
        self._idle: list[_engine.Decoder] = []
        self._plans: dict[Any, controls.Plan] = {}
        self._forms: dict[Any, Form] = {}
        self._wishes: dict[Any, WishForm] = {}
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self.metadata: Mapping[str, Any] = _Metadata(engine)
        facts = engine.info()
        self.vocab_size: int = facts["vocab_size"]
        self.bos: int | None = facts["bos"]
        self.eos: int | None = facts["eos"]
        self.tokenizer = self._read_tokenizer()
        self.recommended = self._read_recommended()

    def __repr__(self) -> str:
        facts = self._engine.info()
        name = self.metadata.get("general.name", "unnamed")
        return f"<fastlm.Model {name!r}: {self.vocab_size} tokens, LSTM {facts['units']}, on {facts['isa']}>"

    def _read_tokenizer(self) -> tokenizer.Tokenizer | None:
        try:
            found = tokenizer.from_fields(self.metadata)
        except ValueError as e:
            raise _engine.FormatError(str(e)) from None
        if found is not None and found.vocab_size > self.vocab_size:
            raise _engine.FormatError(
                f"the tokenizer has {found.vocab_size} tokens, but the output layer only {self.vocab_size}"
            )
        return found

    def _read_recommended(self) -> Mapping[str, Any]:
        found = {name: self.metadata.get(f"general.sampling.{key}") for name, key in RECOMMENDABLE.items()}
        # The file has them in float32: 0.95 shall be the 0.95 that was meant, not 0.949999988.
        found = {name: float(str(np.float32(v))) if isinstance(v, float) else v for name, v in found.items()}
        try:
            GenerationOptions.of(found)
        except (TypeError, ValueError) as e:
            raise _engine.FormatError(f"keys 'general.sampling.*': {e}") from None
        return MappingProxyType({name: value for name, value in found.items() if value is not None})

    @property
    def info(self) -> dict[str, Any]:
        """What the model is: sizes, layers, tokenizer, how texts start and end, and the instruction set in use."""
        facts = self._engine.info()
        tensors = self._engine.tensors()
        return {
            "name": self.metadata.get("general.name"),
            "license": self.metadata.get("general.license"),
            "description": self.metadata.get("general.description"),
            "task": self.metadata["lstm.task"],
            **facts,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.kind,
            "documents": None if self.tokenizer is None else self.tokenizer.documents,
            "recommended": dict(self.recommended),
            "dtypes": _dtypes(tensors),
            "tensors": {name: shape for name, shape, *_ in tensors},
        }

    def check(self) -> tuple[float, float]:
        """Runs the test vector that travels with the file.

        Returns
        -------
        largest, tolerance : float
            The largest difference of a log-probability from what the training framework computed, and what
            the file allows.

        Raises
        ------
        FormatError
            If the file has no test vector.
        """
        return self._engine.verify()

    # ---- text and ids --------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end."""
        if not isinstance(text, str):
            raise TypeError(f"text={text!r:.60}: expected a str, found {type(text).__name__}")
        return self._need_tokenizer().encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        ids = token_array(tokens)
        self._check_tokens(ids)
        return self._need_tokenizer().decode(ids)

    def _need_tokenizer(self) -> tokenizer.Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: it takes token ids and gives token ids, no text")
        return self.tokenizer

    def _check_tokens(self, tokens: Sequence[int], what: str = "token") -> None:
        if not tokens or 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            return
        for place, token in enumerate(tokens):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"{what} {token} at place {place}: expected 0 to {self.vocab_size - 1}")

    def _said(self, text: Prompt, inside: bool = False) -> array[int]:
        """A text or token ids, without start of text. inside: behind other text."""
        if isinstance(text, str):
            ids = array("i", self._need_tokenizer().encode_inside(text) if inside else self.encode(text))
        else:
            ids = token_array(text)
        self._check_tokens(ids)
        return ids

    def _inside(self, ids: array[int], before: bool = False) -> bool:
        """As `Tokenizer.inside`; without a tokenizer there is no text."""
        return self.tokenizer is not None and self.tokenizer.inside(ids, before)

    def _ids(self, prompt: Prompt) -> array[int]:
        """A text behind the start of text; ids as they are; nothing at all as the bare start of text."""
        start = array("i", [] if self.bos is None else [self.bos])
        if isinstance(prompt, str):
            ids = start + array("i", self.encode(prompt))
        else:
            ids = token_array(prompt) or start
            self._check_tokens(ids)
        if not ids:
            raise ValueError("the prompt is empty and this model has no start of text: give it at least one token")
        return ids

    def _ids_of_each(self, prompts: Sequence[Prompt]) -> list[array[int]]:
        found = []
        for place, prompt in enumerate(prompts):
            try:
                found.append(self._ids(prompt))
            except (TypeError, ValueError) as e:
                raise _kind(e)(f"prompt {place} of the list: {e}") from None
        return found

    # ---- decoders ------------------------------------------------------------------------------------

    @contextmanager
    def _decoder(self) -> Iterator[_engine.Decoder]:
        try:
            decoder = self._idle.pop()
        except IndexError:
            decoder = _engine.Decoder(self._engine)
        try:
            yield decoder
        finally:
            if len(self._idle) < _IDLE_DECODERS:
                self._idle.append(decoder)

    # ---- generate ------------------------------------------------------------------------------------

    def _plan(self, given: Mapping[str, Any]) -> controls.Plan:
        """What options mean for this model. Kept, as most programs call with the same options again and again."""
        # A seed is no matter of the plan, but whether there may be one is. Lists and mappings may change.
        key: Any = None
        if all(isinstance(value, _FIXED) for value in given.values()):
            items = ((name, type(value), value) for name, value in given.items() if name != "seed")
            key = (given.get("seed") is None, *items)
            if (found := self._plans.get(key)) is not None:
                return found
        found = controls.plan(self, GenerationOptions.of(dict(given)))
        if key is not None:
            controls.remember(self._plans, _KEPT_PLANS, key, found)
        return found

    @overload
    def generate(
        self,
        prompt: str,
        *,
        each: None = None,
        goals: Sequence[Goal] | None = None,
        search: Search | None = None,
        **options: Unpack[Options],
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]],
        *,
        each: Sequence[Options] | None = None,
        goals: Sequence[Goal] | None = None,
        search: Search | None = None,
        **options: Unpack[Options],
    ) -> Any: ...
    @overload
    def generate(
        self,
        prompt: Sequence[int],
        *,
        each: None = None,
        goals: Sequence[Goal] | None = None,
        search: Search | None = None,
        **options: Unpack[Options],
    ) -> Completion: ...
    def generate(
        self,
        prompt: Any,
        *,
        each: Sequence[Options] | None = None,
        goals: Sequence[Goal] | None = None,
        search: Search | None = None,
        **options: Unpack[Options],
    ) -> Any:
        """Writes on from a prompt.

        Parameters
        ----------
        prompt : str, sequence of int, or list of such
            A text, which follows the model's start of text; or token ids, which are used as they are. May be
            empty if the model has a start of text; an empty sequence is one empty prompt, not a list of none.
        each : sequence of mappings, optional
            Of a list of prompts: for each one options of its own, on top of the others.
        goals : sequence of fastlm.goals.Goal, optional
            What the text shall have: see `fastlm.goals`.
        search : fastlm.goals.Search, optional
            How texts with much of several soft goals are found.
        **options
            See `GenerationOptions`.

        Returns
        -------
        Completion
            A list of them for a list of prompts, and for ``n`` above 1 (in a list of prompts: lists).

        Raises
        ------
        TypeError, ValueError
            For a prompt or an option that cannot be used; the message says what would be right.
        ConflictError
            If no text can meet the goals: a ValueError that names those which are in each other's way.

        Examples
        --------
        >>> import fastlm
        >>> text = str(fastlm.load("stories").generate("Once upon a time", max_tokens=20, seed=1))
        """
        if goals is not None and (not isinstance(goals, Sequence) or goals):
            from fastlm.goals.writing import generate

            if each is not None:
                raise ValueError("each: with goals, prompts have one set of options: leave it out")
            return generate(self, prompt, goals, search, options)
        if search is not None:
            raise ValueError("search: without goals there is nothing to search for")
        plan = self._plan(options)
        limits = self._limits(plan.options)
        batch = is_batch(prompt)
        prompts = list(prompt) if batch else [prompt]
        plans, seeds = self._plans_of_each(each, options, plan, prompts if batch else None)
        ids = self._ids_of_each(prompts) if batch else [self._ids(prompt)]
        groups = self._write(prompts, ids, plans, seeds, limits)
        found = groups if plan.options.n > 1 else [group[0] for group in groups]
        return found if batch else found[0]

    def _plans_of_each(
        self, each: Sequence[Options] | None, options: Options, plan: controls.Plan, prompts: list[Prompt] | None
    ) -> tuple[list[controls.Plan], list[int]]:
        """A plan and a seed for every prompt."""
        seed = seed_of(options)
        if each is None:
            count = 1 if prompts is None else len(prompts)
            return [plan] * count, [seed] * count
        if prompts is None:
            raise ValueError("each: expected a list of prompts, found one prompt: give it its options as they are")
        if not isinstance(each, Sequence) or len(each) != len(prompts):
            found = f"{len(each)} of them" if isinstance(each, Sequence) else type(each).__name__
            raise ValueError(f"each: expected {len(prompts)} mappings of options, one for each prompt, found {found}")
        shared = {name: getattr(plan.options, name) for name in options}
        plans, seeds = [], []
        for place, own in enumerate(each):
            try:
                if not isinstance(own, Mapping):
                    raise TypeError(f"expected a mapping of options, found {type(own).__name__}")
                for name in _OF_A_CALL:
                    if name in own:
                        raise ValueError(f"{name} belongs to the whole call")
                plans.append(self._plan({**shared, **own}))
                seeds.append(seed_of(own) if own.get("seed") is not None else seed)
            except (TypeError, ValueError) as e:
                raise _kind(e)(f"each[{place}]: {e}") from None
        return plans, seeds

    def _write(
        self,
        prompts: list[Prompt],
        ids: list[array[int]],
        plans: list[controls.Plan],
        seeds: list[int],
        limits: dict[str, Any],
    ) -> list[list[Completion]]:
        """The completions of each prompt, all written side by side."""
        begin = time.perf_counter()
        options = plans[0].options if plans else GenerationOptions()
        with self._decoder() as decoder:
            starts = self._starts(decoder, ids, plans)
            self._read(decoder, starts, limits)
            if options.num_beams > 1 or options.without_replacement:
                seeds = seeds if options.without_replacement else [0] * len(seeds)
                found = _search(decoder, starts, seeds, over_when(limits))
                return self._found(decoder, prompts, starts, seeds, found, begin)
            texts = [start.texts(seed) for start, seed in zip(starts, seeds, strict=True)]
            decoder.write([text.job for group in texts for text in group], **limits)
            total = sum(map(len, ids)) + sum(len(text.job.tokens) for group in texts for text in group)
            timings = timed(begin, total, (text.job for group in texts for text in group))
            return [
                [
                    self._finished(
                        decoder, start, prompt, self._completion(prompt, text, start.logprobs, seed, timings)
                    )
                    for text in _best(group, options)
                ]
                for prompt, start, group, seed in zip(prompts, starts, texts, seeds, strict=True)
            ]

    def _starts(
        self, decoder: _engine.Decoder, ids: Sequence[array[int]], plans: Sequence[controls.Plan]
    ) -> list[Start]:
        """Where the texts of each prompt begin."""
        return [Start(self, decoder, *one) for one in zip(ids, plans, strict=True)]

    def _finished(self, decoder: _engine.Decoder, start: Start, prompt: Prompt, completion: Completion) -> Completion:
        """With what is only known of a whole text."""
        return completion

    def most_likely(
        self, prompt: Prompt, n: int = 1, *, max_steps: int = 10_000, **options: Any
    ) -> tuple[list[Completion], Proof]:
        """The likeliest of all texts of at most ``max_tokens``, with the proof: for short answers. (The likeliest
        text of a language model is often a very short one: see ``min_tokens`` and ``length_penalty``, which is 0 by
        default here.)

        Parameters
        ----------
        prompt : str or sequence of int
        n : int
            So many texts, 1 to 64.
        max_steps : int
            Texts in the making that are followed before the search gives up.
        **options
            As for a beam search.

        Returns
        -------
        list of Completion, Proof
            The texts, the likeliest first. ``Proof.proven`` says whether there are none better; ``Proof.bound`` what
            others could have at most.
        """
        n = check_option("num_beams", n, "n")
        if isinstance(max_steps, bool) or not isinstance(max_steps, Integral) or max_steps < 1:
            raise ValueError(f"max_steps={max_steps!r}: expected a whole number from 1 on")
        if "num_beams" in options:
            raise ValueError("num_beams: as many texts are followed as it takes (max_steps): leave it out")
        for name in (*DRAWING, *WITHOUT_BEAMS, "without_replacement", "coverage_penalty", "keep_names", "mbr"):
            if acts(name, options.get(name)):
                raise ValueError(f"most_likely has no {name}: leave it out")
        if options.get("logprobs") not in (None, False, True, 0):
            raise ValueError(f"logprobs={options['logprobs']!r}: most_likely gives no alternatives: say True")
        plan = self._plan({"length_penalty": 0.0, "num_beams": max(4, n), "early_stopping": "never", **options})
        if plan.options.num_beam_groups:
            raise ValueError("num_beam_groups: there is one likeliest text, however diverse: leave it out")
        _check_only_falling(plan.options)
        limits, begin, ids = self._limits(plan.options), time.perf_counter(), self._ids(prompt)
        with self._decoder() as decoder:
            [start] = self._starts(decoder, [ids], [plan])
            self._read(decoder, [start], limits)
            known = beam_searches(decoder, [(plan, start.beam())], over_when(limits))[0]
            whole = [one for one in known if one.finish in ("stop", "length") and one.satisfied is not False]
            proof = exact_search(decoder, plan, start.beam(), n, int(max_steps), over_when(limits), whole)
            timings = timed(begin, len(ids) + proof.steps)
            found = [self._found_completion(decoder, prompt, start, one, 0, timings) for one in proof.found]
            return [self._finished(decoder, start, prompt, one) for one in found], proof

    def _found(
        self,
        decoder: _engine.Decoder,
        prompts: list[Prompt],
        starts: list[Start],
        seeds: list[int],
        found: list[list[Found]],
        begin: float,
    ) -> list[list[Completion]]:
        """The n best of each search."""
        found = [
            self._in_order(decoder, prompt, start, texts)
            for prompt, start, texts in zip(prompts, starts, found, strict=True)
        ]
        kept = [texts[: start.plan.options.n] for start, texts in zip(starts, found, strict=True)]
        total = sum(start.prompt_tokens for start in starts) + sum(len(one.tokens) for group in kept for one in group)
        timings = timed(begin, total)
        return [
            [
                self._finished(
                    decoder, start, prompt, self._found_completion(decoder, prompt, start, one, seed, timings)
                )
                for one in group
            ]
            for prompt, start, seed, group in zip(prompts, starts, seeds, kept, strict=True)
        ]

    def _in_order(self, decoder: _engine.Decoder, prompt: Prompt, start: Start, found: list[Found]) -> list[Found]:
        """What a search has found, once all of it is known."""
        if not start.plan.options.mbr:
            return found
        known = self.tokenizer
        if known is None:
            return by_risk(found, [one.tokens for one in found])
        return by_risk(found, [re.findall(r"\w+", known.decode(one.tokens).lower()) for one in found])

    def _found_completion(
        self,
        decoder: _engine.Decoder,
        prompt: Prompt,
        start: Start,
        one: Found,
        seed: int,
        timings: Timings,
    ) -> Completion:
        ids, options = start.ids, start.plan.options
        text = "" if self.tokenizer is None else self.tokenizer.decode(one.tokens, context=ids)
        return Completion(
            text=self._echo(prompt, ids) + text if options.echo else text,
            token_ids=list(one.tokens),
            finish_reason=one.finish,
            logprobs=start.own_logprobs(decoder, one.tokens) if start.plan.logprobs else None,
            seed=seed,
            usage=used(start.prompt_tokens, len(one.tokens)),
            timings=timings,
            stop_reason=one.ended_by,
            prompt_logprobs=start.logprobs,
            satisfied=one.satisfied,
            missing=list(one.missing),
            score=one.score,
        )

    def _limits(self, options: GenerationOptions) -> dict[str, Any]:
        """When a call that begins now ends, as `Decoder.write` takes it."""
        return {"deadline": _deadline(options), "cancelled": options.cancelled}

    def _read(self, decoder: _engine.Decoder, starts: list[Start], limits: dict[str, Any]) -> None:
        """Reads prompts once for all texts that begin with them: those of one call, and of later ones."""
        readers = [reader for start in starts if (reader := start.reader()) is not None]
        if readers:
            decoder.write(readers, **limits)
            for start in starts:
                start.have_read()

    def _completion(
        self,
        prompt: Prompt,
        text: Text,
        said: list[float | None] | None,
        seed: int,
        timings: Timings,
        written: str | None = None,
    ) -> Completion:
        job, ids, options = text.job, text.ids, text.plan.options
        written = text.written.finish(job.tokens) if written is None else written
        stopped_by = text.written.stopped_by
        ids_and_logprobs = job.alternatives
        return Completion(
            text=self._echo(prompt, ids, text.skip) + written if options.echo else written,
            token_ids=job.tokens,
            finish_reason="stop" if stopped_by is not None else job.finish or "",
            logprobs=None if options.logprobs is None or options.logprobs is False else job.logprobs,
            seed=seed,
            usage=used(text.prompt_tokens, len(job.tokens)),
            timings=timings,
            stop_reason=job.ended_by if stopped_by is None else stopped_by,
            top_logprobs=None
            if ids_and_logprobs is None
            else [dict(zip(*one, strict=True)) for one in ids_and_logprobs],
            prompt_logprobs=said,
            # What a stop text has cut off is not whole.
            satisfied=text.guide.complete and stopped_by is None if isinstance(text.guide, Guide) else None,
        )

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[str]:
        """The same text as `generate`, piece by piece, as it is written.

        Returns
        -------
        iterator of str
            Pieces of whole characters; together they are ``generate(...).text``. Closing it (or leaving the
            loop) stops the work.

        Raises
        ------
        TypeError, ValueError
            As `generate`, at once; also for a list of prompts, ``n`` above 1, ``best_of`` and log-probabilities.
        """
        plan = self._plan(options)
        if is_batch(prompt):
            raise TypeError("stream takes one prompt; use generate for a list")
        for name in plan.options.given(*_OF_A_WHOLE_TEXT):
            raise ValueError(f"stream yields one text and no {name}; use generate")
        self._need_tokenizer()
        ids, seed, deadline = self._ids(prompt), seed_of(options), _deadline(plan.options)
        return self._pieces(prompt, ids, plan, seed, deadline)

    def _pieces(self, prompt: Prompt, ids: array[int], plan: controls.Plan, seed: int, deadline: int) -> Iterator[str]:
        if plan.options.echo and (echo := self._echo(prompt, ids)):
            yield echo
        limits: dict[str, Any] = {"deadline": deadline, "cancelled": plan.options.cancelled}
        with self._decoder() as decoder:
            [start] = self._starts(decoder, [ids], [plan])
            self._read(decoder, [start], limits)
            [text] = start.texts(seed)

        def write(job: _engine.Job) -> None:
            with self._decoder() as decoder:  # not kept while the caller has the piece
                decoder.write([job], 1, **limits)

        yield from text.pieces(write)

    async def agenerate(self, prompt: Any, **options: Any) -> Any:
        """`generate` for asyncio: the work is done in a thread, and other tasks run meanwhile. Cancelling the task
        ends it."""
        import asyncio  # takes longer than all of fastlm

        over, asked = threading.Event(), check_option("cancelled", options.get("cancelled"))
        options["cancelled"] = over.is_set if asked is None else lambda: over.is_set() or asked()
        try:
            return await asyncio.to_thread(partial(self.generate, prompt, **options))
        except asyncio.CancelledError:
            over.set()
            raise

    async def astream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[str]:
        """`stream` for asyncio: each piece is made in a thread. Closing it, or cancelling the task, stops the work."""
        import asyncio

        pieces, end = self.stream(prompt, **options), object()
        while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
            yield cast(str, piece)

    def _echo(self, prompt: Prompt, ids: array[int], healed: str = "") -> str:
        """The prompt's text; of ids without what is written anew, and that."""
        return prompt if isinstance(prompt, str) else self._need_tokenizer().decode(ids) + healed

    def next_tokens(
        self, prompt: Prompt, k: int | None = 5, *, as_ids: bool = False, **options: Unpack[Options]
    ) -> list[tuple[Any, float]]:
        """What may come next, after the given controls.

        Parameters
        ----------
        prompt : str or sequence of int
        k : int or None
            So many likeliest tokens; None: all that the controls leave.
        as_ids : bool
            Tokens as ids instead of what they add to the text.
        **options
            Controls, as in `generate`; without any the model's recommended ones act, as there.

        Returns
        -------
        list of (str or int, float)
            Tokens with the natural logarithm of the probability with which `generate` draws them, the likeliest first.
        """
        if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or k < 1):
            raise ValueError(f"k={k!r}: expected a whole number from 1 on, or None for all tokens")
        plan = self._plan(options)
        for name in plan.options.given(*_OF_A_TEXT):
            raise ValueError(f"next_tokens has no {name}")
        ids = self._ids(prompt)
        with self._decoder() as decoder:
            [start] = self._starts(decoder, [ids], [plan])
            self._read(decoder, [start], {})
            decoder.feed(start.state, start.unread)
            found, logits = decoder.candidates(start.state, start.texts(seed_of(options))[0].job)
        tokens = np.frombuffer(found, np.int32)
        scaled = np.frombuffer(logits, np.float32) / np.float64(np.float32(plan.temperature) or 1)
        order = np.lexsort((tokens, -scaled))[:k]
        total = np.logaddexp.reduce(scaled) if len(scaled) else 0.0
        names = tokens[order].tolist()
        if not as_ids:
            names = [self._need_tokenizer().decode([token], context=start.ids) for token in names]
        return list(zip(names, (scaled[order] - total).tolist(), strict=True))

    def suggest(self, prefix: str, k: int = 5, *, typos: int = 0) -> Suggestions:
        """The likeliest words that the text may go on with, for keyboards and editors.

        Parameters
        ----------
        prefix : str
            What was typed, perhaps up to the middle of a word. What is known of it is kept (`load`'s
            prefix_cache_mb), so that a further keystroke costs only what it adds.
        k : int
        typos : int
            So many letters of the word that was begun, 0 to 3, may be wrong, missing, too many, or have changed places
            (in bytes of UTF-8). Each is taken to be as likely as 1 in 100.

        Returns
        -------
        Suggestions
            A list of (what completes the word, natural log-probability of the word given what was typed of it), the
            likeliest first; ``""`` says that the word may be whole. Its ``exact`` and ``bound`` say how sure that is.
            With ``typos`` these are whole words, whose log-probabilities are among those that were found, and
            ``replaces`` says for how many characters at the end of the prefix they stand.
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix={prefix!r:.60}: expected text, found {type(prefix).__name__}")
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise ValueError(f"k={k!r}: expected a whole number from 1 on")
        if isinstance(typos, bool) or not isinstance(typos, Integral) or not 0 <= typos <= 3:
            raise ValueError(f"typos={typos!r}: expected a whole number from 0 to 3")
        return suggest(self, prefix, int(k), int(typos))

    @cached_property
    def _words(self) -> Words:
        return Words(self._need_tokenizer(), self.vocab_size)

    def classify(self, text: Any, *, explain: bool = False) -> Any:
        """Of a `fastlm.classifier.Classifier`: the probability of each label.

        Raises
        ------
        ValueError
            This model writes texts: `generate` is for it.
        """
        raise ValueError("this model is no classifier but writes texts: call generate, or load a classifier")

    # ---- the past as a value -------------------------------------------------------------------------

    @cached_property
    def _fingerprint(self) -> bytes:
        return self._engine.fingerprint()

    def state(self, data: bytes | None = None, *, start: bool = True) -> State:
        """A network's past: of a model that has read nothing but its start of text (``start``, if it has one), or from
        ``bytes`` of another state.

        Raises
        ------
        TypeError
            ``data`` is not bytes: what is to be read goes to `State.feed`.
        ValueError
            The bytes are no state, are damaged, or belong to another model or another version of the numerics.
        """
        if data is not None:
            _check_bytes(data, "state")
            return restored(self, data)
        state = State(self, _engine.State(self._engine))
        return state.feed([self.bos]) if start and self.bos is not None else state

    def session(self, data: bytes | None = None, **options: Unpack[Options]) -> Session:
        """A text that is written bit by bit, behind the start of text; or one that goes on, from ``bytes`` of a
        session (whose options it has).

        Raises
        ------
        TypeError, ValueError
            As `generate`; for ``n``, ``best_of``, ``echo`` and ``prompt_logprobs``, which a session has not; and for
            bytes that are no session of this model.
        """
        if data is not None:
            if options:
                raise ValueError(f"a stored session has its own options: leave out {', '.join(options)}")
            _check_bytes(data, "session")
            return resumed(self, data)
        plan = self._plan(options)
        for name in plan.options.given("n", "num_beams", "best_of", "echo", "prompt_logprobs", "token_healing"):
            raise ValueError(f"a session writes one text and has no {name}")
        kept = {name: getattr(plan.options, name) for name in options if name != "seed"}
        return Session(self, plan, kept, seed_of(options))

    # ---- score ---------------------------------------------------------------------------------------

    @overload
    def score(self, text: Prompt, *, documents: bool = False) -> Score: ...
    @overload
    def score(self, text: list[str], *, documents: bool = False) -> list[Score]: ...
    @overload
    def score(self, text: Iterator[Prompt]) -> Iterator[Score]: ...
    def score(self, text: Any, *, documents: bool = False) -> Any:
        """How likely the model finds a text.

        Parameters
        ----------
        text : str, sequence of int, or iterable of such
            A text is read after the model's start of text; token ids are read as they are, the first from
            the fresh network.
        documents : bool
            Take the text as a file like those the model was trained on: cut it into documents, end each with
            the end of text (which is scored too), and carry the state from one to the next. This is how the
            perplexity of a corpus is measured.

        Returns
        -------
        Score
            A list of them for a list of texts (an empty one is a text without tokens). For any other iterable, for
            instance an open file, an iterator over them, which holds no more texts than are scored side by side.
        """
        if isinstance(text, str) or _is_sequence(text):
            if not is_batch(text):
                return self._score(text, documents)
            return [self._score(one, True) for one in text] if documents else list(score_each(self, text))
        if not isinstance(text, Iterable) or isinstance(text, (bytes, bytearray, memoryview, Mapping)):
            raise TypeError(f"expected a text, token ids, or several of them, found {type(text).__name__}")
        if documents:
            raise ValueError("documents=True wants a text, or a list of texts")
        return score_each(self, text)

    # ---- compression ---------------------------------------------------------------------------------

    def compress(self, data: str | bytes) -> bytes:
        """A text (or any bytes) in as few bytes as the model finds it likely; `decompress` gives it back, on any
        machine.

        Raises
        ------
        ValueError
            This model's tokens are not text as they are.
        """
        return compress(self, data)

    def decompress(self, data: bytes) -> bytes:
        """What `compress` was given, as bytes (a text in UTF-8).

        Raises
        ------
        ValueError
            The bytes are not compressed text, are damaged, or were written with another model.
        """
        return decompress(self, data)

    def _score(self, text: Prompt, documents: bool) -> Score:
        if not isinstance(text, str):
            if documents:
                raise ValueError("documents=True wants a text, not token ids")
            return self._score_ids(token_array(text), fresh=True, characters=None)
        if not documents:
            return self._score_ids(array("i", self.encode(text)), fresh=False, characters=len(text))
        known = self._need_tokenizer()
        parts = list(tokenizer.split_documents(text, known.documents))
        characters = tokenizer.count_characters(parts, known.documents)
        return self._score_ids(array("i", known.encode_documents(parts)), fresh=False, characters=characters)

    def _score_ids(self, ids: array[int], *, fresh: bool, characters: int | None) -> Score:
        """``fresh``: not behind the start of text. ``characters``: None to count those of the ids' text."""
        state = _engine.State(self._engine)
        with self._decoder() as decoder:
            if self.bos is not None and not fresh:
                decoder.feed(state, array("i", [self.bos]))
            logprobs = decoder.score(state, ids)
        return self._scored(ids, logprobs, characters)

    def _scored(self, ids: array[int], logprobs: array[float], characters: int | None) -> Score:
        if self.tokenizer is None:
            return Score(ids.tolist(), logprobs.tolist(), characters or 0)
        if characters is None:
            characters = len(self.tokenizer.decode(ids))
        unknown = self.tokenizer.unknown
        count = 0 if unknown is None else ids.count(unknown)
        return Score(ids.tolist(), logprobs.tolist(), characters, count, pieces_of(self.tokenizer, ids))


class _Refused:
    def __init__(self, why: str) -> None:
        self._why = why

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = self.__name__ = name
        self.__doc__ = f"Raises ValueError: {name} {self._why}."

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"{self._name} {self._why}")


def refused(why: str) -> Any:
    """A method that a kind of model has not: calling it raises ValueError with its name and why."""
    return _Refused(why)


def _kind(e: Exception) -> type[TypeError] | type[ValueError]:
    """Its plain kind: some kinds of ValueError are not made of a text."""
    return TypeError if isinstance(e, TypeError) else ValueError


def _check_bytes(data: Any, what: str) -> None:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        kind = type(data).__name__
        raise TypeError(f"expected bytes() of a {what}, found {kind}; a text is read by model.{what}().feed(text)")


class Start:
    """Where the texts of one prompt begin: its state, what of it was not read yet, and what controls remember."""

    def __init__(
        self,
        model: Model,
        decoder: _engine.Decoder,
        ids: array[int],
        plan: controls.Plan,
        source: _engine.Source | None = None,
    ) -> None:
        self.model, self.plan, self.source = model, plan, source
        self.prompt_tokens = len(ids) if source is None else len(source)
        self.ids, self.healed = healed(model._words, ids) if plan.options.token_healing else (ids, "")
        ids = self.ids
        self.state = _engine.State(model._engine, source)
        self.amateur = None if plan.amateur is None else _engine.State(plan.amateur._engine)
        self.memory = None
        if plan.sampling.needs_memory:
            self.memory = _engine.Memory(model._engine, plan.options.penalty_window or 0)
            self.memory.add(ids)
        self.logprobs = self._score(decoder) if plan.options.prompt_logprobs else None
        self.unread = ids
        self._keeps = model._prefixes.keeps(ids) and plan.amateur is None and source is None
        if self._keeps and (found := model._prefixes.find(ids)) is not None:
            self.state, length = found
            self.unread = ids[length:]

    def _score(self, decoder: _engine.Decoder) -> list[float | None]:
        """Natural log-probabilities of the prompt's tokens; a start of text is given, not guessed."""
        logprobs = decoder.score(_engine.State(self.model._engine), self.ids).tolist()
        given = self.model.bos is not None and self.ids[0] == self.model.bos
        return [None, *logprobs[1:]] if given else [*logprobs]

    def own_logprobs(self, decoder: _engine.Decoder, tokens: Sequence[int]) -> list[float]:
        """Natural log-probabilities of a text behind the prompt, of the model itself before any control."""
        state = self.state.copy()
        decoder.feed(state, self.unread)
        return decoder.score(state, array("i", tokens)).tolist()

    def reader(self) -> _engine.Job | None:
        """What reads the prompt and writes nothing; None if that gains nothing."""
        if not self.unread or not (self._keeps or self.plan.count > 1):
            return None
        self._reader = _engine.Job(
            self.state, self.unread, self.plan.sampling, 0, memory=self.memory, amateur=self.amateur
        )
        return self._reader

    _reader: _engine.Job | None = None

    def have_read(self) -> None:
        """After the reader did its work."""
        if self._reader is None:
            return
        self.unread = self._reader.unread
        if self._keeps and not self.unread:
            self.model._prefixes.keep(self.ids, self.state)

    def beam(self) -> Beam:
        """Where a search begins."""
        form = self.plan.form
        return Beam(
            self.state,
            self.unread,
            memory=self.memory,
            guide=None if form is None else form.guide(self.plan.allowed, self.ids),
            wanted=self._wanted() if self.plan.phrases else None,
        )

    def _wanted(self) -> Wanted:
        known = self.model.tokenizer
        if known is None or not known.exact_pieces:
            return Wanted(self.plan.phrases, ())
        return Wanted(self.plan.phrases, known.pieces, lead=known.lead_behind(self.ids).encode())

    def texts(self, seed: int) -> list[Text]:
        known = self.model.tokenizer
        stream = None if known is None else partial(known.stream, self.ids)
        skip = "" if known is None else self.healed.removeprefix(known.lead_behind(self.ids))
        count, copied = self.plan.count, self.plan.count > 1
        return [
            Text(
                self.plan,
                stream,
                self.ids,
                self.unread,
                self.state.copy() if copied else self.state,
                seed,
                index,
                self.memory.copy() if copied and self.memory is not None else self.memory,
                self.amateur.copy() if copied and self.amateur is not None else self.amateur,
                guide=Healing(self.model._words, self.healed.encode(), self.plan.allowed) if self.healed else None,
                skip=skip,
                prompt_tokens=self.prompt_tokens,
            )
            for index in range(count)
        ]


def _search(decoder: _engine.Decoder, starts: list[Start], seeds: list[int], over: Over) -> list[list[Found]]:
    """What the searches of each start find. They are all of one kind: that belongs to the whole call."""
    beams = [(start.plan, start.beam()) for start in starts]
    if not starts or not starts[0].plan.options.without_replacement:
        parts = (beams[at : at + _SEARCHES] for at in range(0, len(beams), _SEARCHES))
        return [found for part in parts for found in beam_searches(decoder, part, over)]
    return [
        stochastic_beams(decoder, plan, beam, plan.options.n, seed, over)
        for (plan, beam), seed in zip(beams, seeds, strict=True)
    ]


def _best(texts: list[Text], options: GenerationOptions) -> list[Text]:
    if options.best_of is None:
        return texts
    return sorted(texts, key=lambda text: -text.mean_logprob)[: options.n]


def _check_only_falling(options: GenerationOptions) -> None:
    """A proof needs scores that a further token never raises."""
    raising = [name for name in ("frequency_penalty", "presence_penalty") if (getattr(options, name) or 0) < 0]
    if any(bias > 0 for bias in (options.logit_bias or {}).values()):
        raising.append("logit_bias")
    for name in raising:
        sign = "above" if name == "logit_bias" else "below"
        raise ValueError(f"{name} {sign} 0 could raise a text's score, so nothing could be proved: leave it out")


def over_when(limits: Mapping[str, Any]) -> Over:
    """Why a search has to end now, or None."""
    deadline, cancelled = limits["deadline"], limits["cancelled"]

    def over() -> str | None:
        if deadline and _engine.clock() >= deadline:
            return "deadline"
        return "cancelled" if cancelled is not None and cancelled() else None

    return over


def seed_of(options: Mapping[str, Any]) -> int:
    seed = options.get("seed")
    if seed is None:
        return secrets.randbits(63)
    return int(check_option("seed", seed))


def _deadline(options: GenerationOptions) -> int:
    """On the engine's clock; 0: none."""
    return 0 if options.deadline_ms is None else _engine.clock() + max(1, int(1e6 * options.deadline_ms))


_GGML_TYPES = {0: "f32", 30: "bf16", 24: "int8"}


def _dtypes(tensors: Iterable[tuple[str, tuple[int, ...], int, int, int]]) -> dict[str, str]:
    """Type of the weights of each matrix; int4 lies in bytes and has factors beside it (docs/format.md)."""
    types = {name: _GGML_TYPES[kind] for name, *_, kind in tensors}
    matrices = [name.removesuffix(".weight") for name in types if name.endswith(".weight")]
    return {name: "int4" if f"{name}.group" in types else types[f"{name}.weight"] for name in matrices}


def pieces_of(known: tokenizer.Tokenizer, ids: Sequence[int]) -> Sequence[str]:
    """What each token adds to the text, made when somebody looks."""
    return _Pieces(known, ids)


class _Pieces(Sequence[str]):
    def __init__(self, known: tokenizer.Tokenizer, ids: Sequence[int]) -> None:
        self._known, self._ids = known, ids

    @cached_property
    def _texts(self) -> list[str]:
        stream = self._known.stream()
        texts = [stream.push(token) for token in self._ids]
        return [*texts[:-1], texts[-1] + stream.finish()] if texts else []

    def __getitem__(self, place: Any) -> Any:
        return self._texts[place]

    def __len__(self) -> int:
        return len(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._texts == list(other)


class _Metadata(Mapping[str, Any]):
    """The file's keys; a value is read when it is asked for."""

    def __init__(self, engine: _engine.Model) -> None:
        self._engine, self._places = engine, engine.keys()

    def __getitem__(self, key: str) -> Any:
        return self._engine.value(self._places[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


_A_PROMPT = "a prompt is a str or a sequence of token ids (int)"


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes, bytearray, memoryview))


def is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one prompt; raises TypeError if it is neither."""
    if isinstance(prompt, str):
        return False
    if not _is_sequence(prompt) or (isinstance(prompt, np.ndarray) and prompt.ndim not in (1, 2)):
        raise TypeError(f"{_A_PROMPT}, found {type(prompt).__name__}")
    if len(prompt) == 0 or not (isinstance(prompt[0], str) or _is_sequence(prompt[0])):
        return False
    for place, one in enumerate(prompt):
        if not (isinstance(one, str) or _is_sequence(one)):
            raise TypeError(f"{_A_PROMPT}, found {type(one).__name__} at place {place} of a list of prompts")
    return True


def token_array(tokens: Any) -> array[int]:
    try:
        return array("i", tokens)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{_A_PROMPT}; found {tokens!r:.60}") from None


def load(
    model: str | os.PathLike[str] | bytes = "stories",
    *,
    threads: int | None = None,
    isa: str | None = None,
    row_cache_mb: float = 16,
    prefix_cache_mb: float = 1,
    screening: Literal["useful", "never", "always", "checked"] = "useful",
) -> Model:
    """Opens a model.

    Parameters
    ----------
    model : path, bytes, or name of a bundled model
        A path is mapped, so it costs no copy and other processes share its memory; the file must not be
        truncated while it is used, since the system kills whoever reads a page that is gone. Bytes are copied.
    threads : int, optional
        Threads that share the work of a token, the calling one among them, 1 to 64; never more than the processors
        that the process may run on. Default: ``FASTLM_THREADS``, else as many as the model's size and the machine's
        cores make useful (one for a small model; a container's quota counts). The results do not depend on it.
    isa : str, optional
        Instruction set by name (`cpu_info` lists them). Default: ``FASTLM_ISA``, else the best there is. The
        results do not depend on it.
    row_cache_mb : float
        Megabytes (2**20 bytes) set aside for first-layer rows of tokens already seen; used only as they come.
    prefix_cache_mb : float
        Megabytes at most for states after prompts (of 8 tokens and more), so that what was read before is not read
        again; 0: none.
    screening : str
        When a screen of the output matrix (docs/screening.md), if the file has one, is used: ``"useful"``, where it is
        faster here; ``"never"``; ``"always"``; or ``"checked"``, for tests of a file: always, and every token is also
        chosen without it, and every bound compared with what it bounds (RuntimeError if one does not hold). The results
        do not depend on it.

    Raises
    ------
    FormatError
        The file is not a model that this version can run.
    OSError
        The file cannot be read.
    ValueError
        ``isa`` is unknown or this processor lacks it, ``threads`` is not 1 to 64, a cache's size is negative, or
        ``screening`` is none of these.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, Integral) or not 0 < threads < 65):
        raise ValueError(f"threads={threads!r}: expected a whole number from 1 to 64")
    for name, size in (("row_cache_mb", row_cache_mb), ("prefix_cache_mb", prefix_cache_mb)):
        if isinstance(size, bool) or not isinstance(size, Real) or not 0 <= size <= 2**20:
            raise ValueError(f"{name}={size!r}: expected 0 to {2**20} megabytes")
    if screening not in _engine.SCREENING:
        raise ValueError(f"screening={screening!r}: expected {', '.join(_engine.SCREENING)}")
    cache, prefixes, threads = int(row_cache_mb * 2**20), int(prefix_cache_mb * 2**20), int(threads or 0)
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _of_task(_engine.Model(None, memoryview(model).cast("B"), isa, cache, threads, screening), prefixes)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model={model!r:.60}: expected a path, the name of a bundled model, or a file's bytes")
    path = model_path(model)
    if not os.path.exists(path) and os.sep not in path and not path.endswith(".gguf"):
        raise FileNotFoundError(errno.ENOENT, f"neither a file nor a bundled model ({', '.join(BUNDLED)})", path)
    engine = _engine.Model(path, None, isa, cache, threads, screening)
    try:
        return _of_task(engine, prefixes)
    except _engine.FormatError as e:  # from what only Python reads: keys' text, tokenizer, sampling
        raise _engine.FormatError(f"{path}: {e}") from None


def _of_task(engine: _engine.Model, prefix_cache_bytes: int) -> Model:
    if engine.source_vocab_size:
        from fastlm.seq2seq import Seq2Seq  # which is a Model, and so is the next

        return Seq2Seq(engine, prefix_cache_bytes)
    if engine.labels:
        from fastlm.classifier import Classifier

        return Classifier(engine, prefix_cache_bytes)
    return Model(engine, prefix_cache_bytes)


def model_path(model: str | os.PathLike[str]) -> str:
    """Where a model lies that is given by its path or by a bundled name."""
    path = os.fspath(model)
    return str(resources.files("fastlm.models") / f"{path}.gguf") if path in BUNDLED else path


_loaded: dict[str, Model] = {}


def generate(
    prompt: Any,
    *,
    model: Any = "stories",
    goals: Sequence[Goal] | None = None,
    search: Search | None = None,
    **options: Unpack[Options],
) -> Any:
    """Writes on from a prompt; `Model.generate` says with what options.

    ``model`` is a `Model`, or what `load` takes (default: the bundled model). A bundled model stays loaded
    for the next call; load any other once yourself if you call often.

    Examples
    --------
    >>> import fastlm
    >>> story = fastlm.generate("Once upon a time", max_tokens=20, seed=1)
    >>> story.finish_reason
    'length'
    """
    if isinstance(model, str) and model in BUNDLED:
        if model not in _loaded:
            _loaded[model] = load(model)
        model = _loaded[model]
    return (model if isinstance(model, Model) else load(model)).generate(prompt, goals=goals, search=search, **options)


def cpu_info() -> dict[str, Any]:
    """Which instruction-set levels this build has, which this processor supports, which `load` uses, and why.

    Raises ValueError if ``FASTLM_ISA`` names a level that is unknown or that this processor lacks.
    """
    forced = os.environ.get("FASTLM_ISA")
    return {
        "isa": _engine.isa_choose(),
        "why": f"FASTLM_ISA={forced}" if forced else "the best this processor supports",
        "levels": dict(_engine.isa_levels()),
    }
