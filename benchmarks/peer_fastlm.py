# SPDX-License-Identifier: Apache-2.0
"""fastlm: one call of `Model.generate` for the whole text of all sequences; the token loop is inside the engine."""

from __future__ import annotations

import time
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import CHECKED, TEMPERATURE, TOP_P, Form, Job, make
from workloads import PRECISIONS

MODULES = ("gguf", "fastlm")  # gguf writes the file; it does not run it
KEEPS_NONE = "no rows kept"
# With a screen of the output matrix, which random weights have no use for: only with a trained model.
SCREENED = "screened"
MIXED = "int8 output, screened"
SCREENED_FORMS = (
    *(Form("fastlm", precision, SCREENED, role="screened", streams=False) for precision in ("f32", "bf16", "int8")),
    Form("fastlm", "int4", MIXED, role="screened", streams=False),
)
FORMS = (
    *(Form("fastlm", precision, draws=True, scores=True) for precision in PRECISIONS),
    # Every token as one that was never seen before: its first layer's input product is computed.
    *(Form("fastlm", precision, KEEPS_NONE, role="bare", streams=False) for precision in ("f32", "int8")),
    *SCREENED_FORMS,
)


def _convert_screened(job: Job, path: Path) -> None:
    """From the weights alone, as all forms: without the tokens that start and end the source's texts."""
    import fastlm

    dtype = "cells=int4,output=int8,embedding=int8" if job.form.how == MIXED else job.form.precision
    plain, text = path.with_suffix(".f32"), None
    fastlm.export(job.workload.weights, plain)
    if job.workload.text:
        text = fastlm.load(job.workload.source).tokenizer.encode(Path(job.workload.text).read_text())
    report = fastlm.quantize(plain, path, dtype=dtype, text=text, screen=True)
    plain.unlink()
    if not report.screen:
        raise RuntimeError("a screen is of no use here")


def convert(job: Job) -> None:
    import fastlm

    if job.form in SCREENED_FORMS:
        make(_path(job), lambda path: _convert_screened(job, path))
        return
    make(_path(job), lambda path: fastlm.export(job.workload.weights, path, dtype=job.form.precision))


def _path(job: Job) -> Path:
    how = [job.form.how.replace(" ", "_")] if job.form in SCREENED_FORMS else []
    return job.path(".gguf", job.form.precision, *how)


class Runner:
    def __init__(self, job: Job) -> None:
        import fastlm

        rows = 0.0 if job.form.how == KEEPS_NONE else 16.0
        self._model = fastlm.load(_path(job), threads=job.threads, row_cache_mb=rows)
        self._job, self._start = job, job.workload.start(job.batch)

    def greedy(self, count: int) -> list[list[int]]:
        prompts = [[token] for token in self._start]
        return [text.token_ids for text in self._model.generate(prompts, max_tokens=count, temperature=0.0)]

    def run(self, count: int) -> None:
        self.greedy(count)

    def gaps(self, count: int) -> list[float]:
        pieces = self._text_model.stream(self._start, max_tokens=count + 1, temperature=0.0)
        next(pieces)
        gaps, last = [], time.perf_counter()
        for _ in islice(pieces, count):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
        return gaps

    @cached_property
    def _text_model(self) -> Any:
        """The same model with a tokenizer, because `stream` hands over text, one character a token.

        It is made of the rounded weights of the other file: rounding anew could round to others."""
        import fastlm
        from fastlm import format
        from fastlm.tokenizer import CharTokenizer

        job = self._job
        path, tokenizer = job.path(".text.gguf", job.form.precision), CharTokenizer(_characters(job.workload.V))
        weights, rounded = format.unpack_rounded(_path(job))
        weights.output_bias[0] = -30  # token 0 ends a text: here it never comes
        make(path, lambda path: format.write(path, weights, tokenizer.fields(), rounded))
        model = fastlm.load(path, threads=job.threads)
        checked = self.greedy(CHECKED)[0]
        alike = checked.index(0) if 0 in checked else CHECKED
        if model.generate(self._start, max_tokens=CHECKED, temperature=0.0).token_ids[:alike] != checked[:alike]:
            raise RuntimeError("with a tokenizer it writes another text")
        return model

    def score(self, texts: list[list[int]]) -> list[NDArray[np.float32]]:
        return [np.array(one.logprobs[1:], np.float32) for one in self._model.score(texts)]

    def write(self, count: int, seed: int) -> list[int]:
        drawn = self._model.generate(self._start, max_tokens=count, temperature=TEMPERATURE, top_p=TOP_P, seed=seed)
        return list(drawn.token_ids)


def _characters(count: int) -> list[str]:
    """As many tokens: the two special ones, then Chinese characters and what follows them."""
    return ["", "", *map(chr, range(0x4E00, 0x4E00 + count - 2))]
