# SPDX-License-Identifier: Apache-2.0
"""Texts in the making: what the engine's jobs write, as text, up to where it stops."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fastlm import _engine
from fastlm.constraints import Healing, Steps
from fastlm.controls import Plan
from fastlm.tokenizer import TextStream

_MOST_LOGIT = np.float32(2.0**60)  # what goes beyond is taken for that, as in the engine


class Written:
    """The text of tokens as they come, up to where the first of some stop texts begins."""

    def __init__(self, stream: TextStream | None, stops: Sequence[str], skip: str = "") -> None:
        self._stream, self._stops, self._skip = stream, stops, skip
        self._longest = max(map(len, stops), default=0)
        self._text, self._given, self._read = "", 0, 0
        self.stopped_by: str | None = None

    def again(self) -> Written:
        """To go on with the same text in another call, whose tokens are counted anew."""
        self._text, self._given, self._read = self._text[self._given :], 0, 0
        return self

    def read(self, tokens: Sequence[int]) -> bool:
        """Reads those of a text's tokens that are new; whether a stop text was found."""
        if self._stream is not None and self.stopped_by is None:
            push, new = self._stream.push, tokens[self._read :]
            self._read = len(tokens)
            self._add("".join([push(token) for token in new]))
        return self.stopped_by is not None

    def finish(self, tokens: Sequence[int]) -> str:
        """The whole text."""
        if not self.read(tokens) and self._stream is not None:
            self._add(self._stream.finish())
        return self._text

    def take(self) -> str:
        """What can no longer be part of a stop text, and was not taken yet."""
        sure = len(self._text) - (0 if self.stopped_by is not None else self._doubtful())
        piece, self._given = self._text[self._given : sure], max(self._given, sure)
        return piece

    def rest(self, tokens: Sequence[int]) -> str:
        """What was not taken yet, at the end."""
        return self.finish(tokens)[self._given :]

    def _add(self, new: str) -> None:
        if self._skip:  # what the prompt has said already
            skipped = min(len(self._skip), len(new))
            self._skip, new = self._skip[skipped:], new[skipped:]
        begin = max(0, len(self._text) - self._longest + 1)
        self._text += new
        if not self._stops or not new:
            return
        found = [(place, stop) for stop in self._stops if (place := self._text.find(stop, begin)) >= 0]
        if found:
            place, self.stopped_by = min(found, key=lambda one: one[0])
            self._text = self._text[:place]

    def _doubtful(self) -> int:
        """How much of the end could be the beginning of a stop text."""
        for n in range(min(self._longest - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-n:]) for stop in self._stops):
                return n
        return 0


class Text:
    """One text being written: a job of the engine's, and its tokens as text. limits: least and most tokens, if not
    those of the options; prompt_tokens: if they are others than ids, which stand before the text."""

    def __init__(
        self,
        plan: Plan,
        stream: Callable[[], TextStream] | None,
        ids: array[int],
        unread: array[int],
        state: _engine.State,
        seed: int,
        index: int = 0,
        memory: _engine.Memory | None = None,
        amateur: _engine.State | None = None,
        limits: tuple[int, int] | None = None,
        guide: Steps | Healing | None = None,
        skip: str = "",
        prompt_tokens: int | None = None,
    ) -> None:
        options = plan.options
        least, most = (options.min_tokens, options.max_tokens) if limits is None else limits
        self.ids, self.plan, self.skip = ids, plan, skip
        self.prompt_tokens = len(ids) if prompt_tokens is None else prompt_tokens
        self.guide = guide if guide is not None or plan.form is None else plan.form.guide(plan.allowed, ids)
        self.written = Written(None if stream is None else stream(), plan.stops, skip)
        self.job = _engine.Job(
            state,
            unread,
            plan.sampling,
            most,
            seed=seed,
            index=index,
            memory=memory,
            amateur=amateur,
            min_tokens=least,
            logprobs=plan.logprobs,
            alternatives=plan.alternatives,
            allowed=plan.allowed,
            guide=self.guide,
            check=self._check,
            often=options.deadline_ms is not None,  # time for the text is part of what is granted
            processor=None if options.logits_processor is None else self._process,
        )

    def _check(self, job: _engine.Job) -> str | None:
        return "stop" if self.written.read(job.tokens) else None

    def _process(self, logits: array[float]) -> Any:
        """Calls the user's function with what it may change, and looks at what it gives back."""
        given = np.frombuffer(logits, np.float32).copy()
        function = self.plan.options.logits_processor
        assert function is not None
        found = function([*self.ids, *self.job.tokens], given)
        found = np.ascontiguousarray(given if found is None else found, np.float32)
        if found.shape != given.shape:
            raise ValueError(f"logits_processor: expected {given.shape[0]} logits, found shape {found.shape}")
        if np.isnan(found).any() or (found == np.inf).any():
            raise ValueError("logits_processor: expected numbers or minus infinity, found NaN or infinity")
        return np.clip(found, -_MOST_LOGIT, _MOST_LOGIT, out=found.copy(), where=found > -np.inf)

    @property
    def mean_logprob(self) -> float:
        """Per token; of no tokens the lowest."""
        logprobs = self.job.logprobs
        return sum(logprobs) / len(logprobs) if logprobs else -np.inf

    def pieces(self, write: Callable[[_engine.Job], None]) -> Iterator[str]:
        """The text piece by piece; write draws a token."""
        while self.job.finish is None:
            write(self.job)
            self.written.read(self.job.tokens)
            if piece := self.written.take():
                yield piece
        if piece := self.written.rest(self.job.tokens):
            yield piece
