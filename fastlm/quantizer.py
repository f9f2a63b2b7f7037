# SPDX-License-Identifier: Apache-2.0
"""fastlm.quantize: a model file with weights in fewer bits, and what that costs on a text."""

from __future__ import annotations

import difflib
import math
import os
import shutil
import statistics
import tempfile
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from fastlm import format
from fastlm.calibration import input_moments, output_states, own_text, states_of_pairs, windows
from fastlm.model import Model, load, model_path
from fastlm.options import Score
from fastlm.rounding import BITS, LARGEST_INPUTS, Array, RoundedRows, round_rows
from fastlm.screening import TRIED, Screen, Trial, best_screen
from fastlm.seq2seq import Seq2Seq
from fastlm.weights import Weights

Text: TypeAlias = str | Sequence[int] | list[tuple[str, str]]
"""That a model is measured on: of a model with a source, pairs."""

FEWEST_TOKENS = 1000
"""A shorter text tells nothing. Rounding moves a token's log-probability by 0.03 (int8) or 0.16 (int4) one way or the
other (standard deviation on the bundled model), so the loss on 1000 tokens is known to 0.1 or 0.5 %: as much as is at
stake."""

OWN_TOLERANCE = 1e-5
"""Of a test vector that the engine computed itself: equal bits, but for a rounding in the file's float32."""

_PARTS = ("cells", "output", "embedding")
_CANDIDATES = ("int4", "cells=int4,output=int8,embedding=int8", "int8", "bf16", "f32")
_ELSEWHERE = {
    **dict.fromkeys(("float32", "fp32", "float", "single"), "f32"),
    **dict.fromkeys(("float16", "fp16", "f16", "half", "bfloat16"), "bf16"),
    **dict.fromkeys(("i8", "q8", "q8_0", "w8a8", "uint8", "qint8", "8bit", "8"), "int8"),
    **dict.fromkeys(("i4", "q4", "q4_0", "q4_k_m", "w4a8", "uint4", "nf4", "4bit", "4"), "int4"),
}

_OUT_OF_CONTEXT = 16  # tokens out of a text after which a fresh model's state is like that in the text
_ROUNDS, _DRAWN = 7, 200  # of "auto": rounds, and tokens drawn in each by each candidate


@dataclass(frozen=True)
class MatrixError:
    """What rounding did to one matrix: ``relative_rms`` is the root mean square of the differences by that of the
    weights, ``largest`` the largest difference. Zero for a matrix that stayed as it was."""

    name: str
    dtype: str
    relative_rms: float
    largest: float


@dataclass(frozen=True)
class TextLoss:
    """Perplexity per token on a text, before and after. ``percent`` is by how much it rose, and ``standard_error``
    how well that is known, in percent too (from the differences of single tokens, taken as independent)."""

    tokens: int
    perplexity_before: float
    perplexity: float
    percent: float
    standard_error: float

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity_before:.2f} → {self.perplexity:.2f}: {self.percent:+.2f} % "
            f"(± {self.standard_error:.2f}) on {self.tokens:,} tokens"
        )


@dataclass(frozen=True)
class Candidate:
    """One of what ``dtype="auto"`` chose from: file size, median time of a token when generating, loss on the text."""

    dtype: str
    bytes: int
    microseconds: float
    loss: TextLoss


@dataclass(frozen=True)
class ScreenReport:
    """What a screen is made of, its size, and the mean share of rows that it could not rule out on the text it was made
    for, of greedy choices and of draws at temperature 1."""

    planes: int
    directions: int
    bytes: int
    greedy: float
    drawn: float

    @classmethod
    def of(cls, screen: Screen, rows: Array, bias: Array, states: Array) -> ScreenReport:
        trial = Trial.of(screen, rows, bias, states[:: max(1, len(states) // TRIED)])
        size = sum(tensor.nbytes for _, tensor in format.screen_tensors(screen))
        greedy, drawn = float(trial.left().mean()), float(trial.left(seed=0).mean())
        return cls(len(screen.size), len(screen.basis), size, greedy, drawn)

    def __str__(self) -> str:
        return (
            f"screen: {self.bytes / 1e6:.2f} MB, {self.planes} bit{'s' * (self.planes > 1)} a weight and "
            f"{self.directions} directions; leaves {self.greedy:.2%} of the rows (greedy), {self.drawn:.2%} (drawn)"
        )


@dataclass(frozen=True)
class QuantizeReport:
    """What was written.

    Attributes
    ----------
    path : str
    dtype : str
        As `quantize` takes it; for ``"auto"`` what was chosen.
    bytes_before, bytes : int
        Sizes of the files.
    rounded_before : tuple of str
        Types other than f32 in the file that was read: its weights were rounded already, and this comes on top.
    matrices : tuple of MatrixError
    max_error : float or None
        Largest difference of a log-probability from the test vector of the file that was read, if it has one.
    loss : TextLoss or None
        None if no text was given.
    candidates : tuple of Candidate
        For ``"auto"``, by time.
    screen : ScreenReport or None
    screened : bool
        Whether one was asked for.
    """

    path: str
    dtype: str
    bytes_before: int
    bytes: int
    rounded_before: tuple[str, ...]
    matrices: tuple[MatrixError, ...]
    max_error: float | None
    loss: TextLoss | None
    candidates: tuple[Candidate, ...] = ()
    screen: ScreenReport | None = None
    screened: bool = False

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.bytes_before / 1e6:.2f} MB → {self.bytes / 1e6:.2f} MB, weights in {self.dtype}"]
        if self.rounded_before:
            lines.append(f"started from weights that were rounded already ({', '.join(self.rounded_before)})")
        lines.append("matrix            type  error (relative RMS)   largest")
        lines += [f"{m.name:16}  {m.dtype:4}  {m.relative_rms:18.3%}  {m.largest:10.2e}" for m in self.matrices]
        lines.append(str(self.loss) if self.loss else "no text was given, so what it costs was not measured")
        if self.screened:
            lines.append(str(self.screen or "no screen: it would not save a fifth of the output matrix's time"))
        if self.candidates:
            lines.append("candidate                                    MB  µs/token     loss")
            lines += [
                f"{c.dtype:40}  {c.bytes / 1e6:6.2f}  {c.microseconds:8.1f}  {c.loss.percent:+.2f} % "
                f"(± {c.loss.standard_error:.2f}){'  chosen' if c.dtype == self.dtype else ''}"
                for c in self.candidates
            ]
        return "\n".join(lines)


def quantize(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    dtype: str | Mapping[str, str] = "int8",
    text: Text | None = None,
    max_loss: float | None = None,
    screen: bool = False,
    progress: Callable[[str], None] | None = None,
) -> QuantizeReport:
    """Writes a model file with its weights in fewer bits. All else in the file stays; a screen goes, or is made anew.

    Parameters
    ----------
    source : path, or name of a bundled model
        If its weights are rounded already, it is these that are rounded further.
    path : path
        Written under a temporary name and moved into place when complete; may be ``source``.
    dtype : str or mapping
        ``"f32"``, ``"bf16"``, ``"int8"`` or ``"int4"`` for all matrices, except that ``"int4"`` leaves an embedding
        of its own in int8: a token reads one row of it, so it costs no time, and int4 would cost perplexity; and that
        a classifier's output, of a few rows, is never in whole numbers. A
        mapping, or a text like ``"cells=int4,output=int8"``, says it for ``cells``, ``output`` and ``embedding``; what
        is left out stays as it is. ``"auto"`` measures: the fastest within ``max_loss`` on the text.
    text : str or sequence of int, or list of (str, str); optional
        Text that the model was not trained on, to measure the loss of perplexity; token ids for a model without
        tokenizer; for a model with a source, sources and their texts. At least 1000 tokens.
    max_loss : float, optional
        For ``"auto"``: the highest rise of perplexity, in percent, that loss and its standard error may reach
        together. Default: 1.
    screen : bool
        Adds a screen of the output matrix: what proves of most tokens, from a bit or two of each weight, that they
        are not the next one, so that the engine computes only the rest. The text stays the same; where the vocabulary
        is large, it comes faster. Made for the ``text``, or without one, less well, for text of the model's own (which
        a model with a source has not). If it would not save a fifth of the output matrix's time, which is so for small
        vocabularies, there will be none.
    progress : callable, optional
        Is told, in a few words, what is being done.

    Returns
    -------
    QuantizeReport

    Raises
    ------
    ValueError
        For an argument that cannot be used, or weights that would have to get more bits than they have.
    TypeError
        For an argument of the wrong type.
    FormatError, OSError
        As `fastlm.load`; or the file cannot be written.

    Notes
    -----
    int4 weights are rounded with text in view (`fastlm.rounding.round_rows`): 4096 tokens that a language model draws
    itself. Those of other models are not, and lose more.

    Examples
    --------
    >>> import os, tempfile
    >>> import fastlm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = fastlm.quantize("stories", os.path.join(folder, "small.gguf"), dtype="int8")
    >>> report.bytes < 0.3 * report.bytes_before
    True
    """
    check_arguments(dtype, text, max_loss, screen, progress)
    if dtype == "auto":
        return _choose(_Source(source, text, screen, progress), path, 1.0 if max_loss is None else max_loss)
    with format.atomic(path) as temporary:
        report = _Source(source, text, screen, progress).write(temporary, dtype)
    return replace(report, path=os.fspath(path))


# ---- what is asked for -------------------------------------------------------------------------------


def check_arguments(dtype: Any, text: Any, max_loss: Any, screen: Any, progress: Any) -> None:
    """What can be told before any work. Raises ValueError and TypeError as `quantize`."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress={progress!r}: expected a function of one text, found {type(progress).__name__}")
    if not isinstance(screen, bool):
        raise TypeError(f"screen={screen!r}: expected True or False, found {type(screen).__name__}")
    if dtype != "auto":
        _parts(dtype)
        if max_loss is not None:
            raise ValueError(f"max_loss={max_loss!r} is for dtype='auto', which chooses by it")
    elif text is None:
        raise ValueError("dtype='auto' weighs speed against loss, so it needs a text")
    if text is not None and not isinstance(text, str) and not _are_pairs(text):
        _check_ids(text)
    if max_loss is not None:
        if isinstance(max_loss, bool) or not isinstance(max_loss, Real):
            raise TypeError(f"max_loss={max_loss!r}: expected a number of percent, found {type(max_loss).__name__}")
        if not float(max_loss) >= 0:
            raise ValueError(f"max_loss={max_loss!r}: expected percent, at least 0")


def _are_pairs(text: Any) -> TypeGuard[list[tuple[str, str]]]:
    return (
        isinstance(text, list)
        and bool(text)
        and all(
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(side, str) for side in pair) for pair in text
        )
    )


def _check_ids(text: Any) -> None:
    kind = type(text).__name__
    wrong = TypeError(
        f"text: expected one str, the text itself, or a sequence of token ids, found {kind}; for "
        "a model with a source, a list of (source, text)"
    )
    if isinstance(text, (bytes, bytearray)):
        raise wrong
    try:
        array("i", list(text))
    except (TypeError, OverflowError):
        raise wrong from None


def _wanted(dtype: str | Mapping[str, str], before: Mapping[str, str], task: str) -> dict[str, str]:
    """Type of each matrix of a file, from what is asked for and the types before."""
    parts = _parts(dtype)
    if task == "classifier" and parts.get("output") in ("int8", "int4"):  # a few rows: it would save nothing
        if not isinstance(dtype, str) or "=" in dtype:
            raise ValueError("output: a classifier's stays in f32 or bf16; leave it out")
        del parts["output"]
    tied = "token_embd" not in before
    if dtype == "int4" and not tied and before["token_embd"] != "int4":
        parts["embedding"] = "int8"
    if tied and parts.get("embedding", parts.get("output")) != parts.get("output"):
        raise ValueError("the embedding of this model is its output matrix: give output= and no other embedding=")
    wanted = {name: parts.get(_part_of(name), kept) for name, kept in before.items()}
    for name, kept in before.items():
        if BITS[wanted[name]] > BITS[kept]:
            raise ValueError(
                f"{name} is in {kept}, and {wanted[name]} cannot bring back what that lost: start from the model "
                "before it was rounded"
            )
    return wanted


def _parts(dtype: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(dtype, str) and "=" in dtype:
        items = [item.strip().partition("=") for item in dtype.split(",")]
        given, dtype = dtype, {part: kind for part, _, kind in items}
        if len(dtype) < len(items) or not all(part and kind for part, _, kind in items):
            raise ValueError(f"dtype={given!r}: expected each part once, as in cells=int4,output=int8")
    if not isinstance(dtype, Mapping):
        return dict.fromkeys(_PARTS, _known_type("dtype", dtype))
    if not dtype:
        raise ValueError(f"dtype={dtype!r}: expected a type for at least one of {', '.join(_PARTS)}")
    for part, kind in dtype.items():
        if part not in _PARTS:
            raise ValueError(f"dtype: {part!r} is none of {', '.join(_PARTS)}{_hint(str(part), _PARTS)}")
        _known_type(part, kind)
    return dict(dtype)


def _known_type(name: str, dtype: Any) -> str:
    if not isinstance(dtype, str) or dtype not in BITS:
        guess = _ELSEWHERE.get(str(dtype).lower())
        known = [*BITS, "auto"] if name == "dtype" else BITS
        hint = f"; did you mean {guess}?" if guess else _hint(str(dtype).lower(), known)
        raise ValueError(f"{name}={dtype!r}: expected {', '.join(known)}{hint}")
    return dtype


def _hint(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _part_of(name: str) -> str:
    return {"token_embd": "embedding", "output": "output"}.get(name, "cells")


# ---- rounding a file ---------------------------------------------------------------------------------


class _Source:
    """A model file that is to be rounded, in one way or several: what they share is read and computed once."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        text: Text | None,
        screen: bool,
        progress: Callable[[str], None] | None,
    ) -> None:
        if isinstance(source, (bytes, bytearray, memoryview)):
            raise TypeError("expected the path of a model or the name of a bundled one, found a file's bytes")
        self.path = model_path(source)
        self.model = load(self.path)
        if (isinstance(text, str) or _are_pairs(text)) and self.model.tokenizer is None:
            else_ids = "" if _are_pairs(text) else ", or give token ids"
            raise ValueError(f"{self.path} has no tokenizer, which a text needs: export it with one{else_ids}")
        self.weights, self.before = format.unpack_rounded(self.path)
        self._check(text, screen)
        self.types_before = {matrix.dtype for matrix in self.before.values()}
        self.matrices = format.matrices(self.weights)
        self.fields = {
            key: self.model.metadata[key] for key in self.model.metadata if not key.startswith(format.WRITTEN)
        }
        self.text = text
        self.screened = screen
        self.progress = progress or (lambda _: None)
        self._rounded: dict[tuple[str, str], RoundedRows] = {}

    def _check(self, text: Text | None, screen: bool) -> None:
        """What only some kinds of models can make use of."""
        task = self.weights.task
        for name, asked in (("text", text is not None), ("screen", screen)):
            if asked and task == "classifier":
                raise ValueError(f"{name}: this is a classifier, and {name} is for models that write")
        if text is not None and _are_pairs(text) != (task == "seq2seq"):
            wanted = "sources and their texts, as a list of pairs" if task == "seq2seq" else "a text, not pairs"
            raise ValueError(
                f"text: for a model {'with' if task == 'seq2seq' else 'without'} a source expected {wanted}"
            )
        if screen and isinstance(self.weights, Weights) and task == "seq2seq":
            if text is None:
                raise ValueError("screen: a model with a source needs sources and their texts to make one for (text)")
            if self.weights.attention is not None and self.weights.attention.copy is not None:
                raise ValueError("screen: a model that copies needs the probability of every token")

    @cached_property
    def score(self) -> Score | None:
        """Of the text, before."""
        if self.text is None:
            return None
        self.progress("perplexity before")
        return _score(self.model, self.text)

    @cached_property
    def moments(self) -> dict[str, npt.NDArray[np.float64]]:
        if not isinstance(self.weights, Weights) or self.weights.encoder is not None:
            return {}
        self.progress("moments of each matrix's inputs, on text of the model's own")
        return input_moments(self.weights, own_text(self.model))

    @cached_property
    def states(self) -> Array:
        """Inputs of the output matrix, on the text or on the model's own."""
        self.progress("screen: states of the model")
        if _are_pairs(self.text):
            assert isinstance(self.weights, Weights)
            return states_of_pairs(self.model, self.weights, self.text)
        if self.score is None:
            return output_states(self.model, own_text(self.model))
        return output_states(self.model, windows(self.score.token_ids), _OUT_OF_CONTEXT)

    def _screen(self, rounded: RoundedRows) -> tuple[Screen | None, ScreenReport | None]:
        if not self.screened or not isinstance(self.weights, Weights):
            return None, None
        bias, attention = self.weights.output_bias, self.weights.attention
        units = self.weights.layers[-1].units if attention is None else attention.units
        rows = rounded.to_float(units)[: len(bias)]
        screen = best_screen(rows, bias, rounded.dtype, self.states, self.progress)
        return screen, ScreenReport.of(screen, rows, bias, self.states) if screen else None

    def write(self, path: str, dtype: str | Mapping[str, str]) -> QuantizeReport:
        """Writes the file with other weights; ``path`` is not that of the source."""
        wanted = _wanted(dtype, {name: matrix.dtype for name, matrix in self.before.items()}, self.weights.task)
        before = self.score  # first, so that a text that is too short is known before the work is done
        rounded = {name: self._round(name, kind) for name, kind in wanted.items()}
        screen, screen_report = self._screen(rounded["output"])
        self.progress("writing the file")
        format.write(path, self.weights, self.fields, rounded, screen)
        max_error = self._write_test_vector(path, rounded, screen)
        loss = self._loss(before, path)
        return QuantizeReport(
            path=path,
            dtype=dtype if isinstance(dtype, str) else ",".join(f"{part}={kind}" for part, kind in dtype.items()),
            bytes_before=os.path.getsize(self.path),
            bytes=os.path.getsize(path),
            rounded_before=tuple(kind for kind in BITS if kind != "f32" and kind in self.types_before),
            matrices=tuple(self._error(name, matrix) for name, matrix in rounded.items()),
            max_error=max_error,
            loss=loss,
            screen=screen_report,
            screened=self.screened,
        )

    def _loss(self, before: Score | None, path: str) -> TextLoss | None:
        if before is None or self.text is None:
            return None
        self.progress("perplexity after")
        return _loss(before, _score(load(path), self.text))

    def _round(self, name: str, dtype: str) -> RoundedRows:
        if dtype == self.before[name].dtype:
            return self.before[name]
        if (name, dtype) not in self._rounded:
            rows = self.matrices[name]
            most = LARGEST_INPUTS.get(dtype)
            if most is not None and rows.shape[1] > most:
                raise ValueError(f"{name} has {rows.shape[1]} inputs: {dtype} sums at most {most} exactly, use bf16")
            moments = self.moments.get(name) if dtype == "int4" else None
            self.progress(f"{name}: {len(rows):,} rows to {dtype}")
            self._rounded[name, dtype] = round_rows(rows, dtype, moments)
        return self._rounded[name, dtype]

    def _error(self, name: str, rounded: RoundedRows) -> MatrixError:
        rows = self.matrices[name]
        difference = rounded.to_float(rows.shape[1]) - rows
        size = float(np.sqrt(np.square(rows, dtype=np.float64).mean()))
        rms = float(np.sqrt(np.square(difference, dtype=np.float64).mean()))
        return MatrixError(name, rounded.dtype, rms / size if size else 0.0, float(np.abs(difference).max()))

    def _write_test_vector(self, path: str, rounded: Mapping[str, RoundedRows], screen: Screen | None) -> float | None:
        """The framework's numbers differ from a rounded model's by the rounding, so its file gets the engine's own, and
        must give them again on another machine. Returns the largest difference between the two."""
        if "lstm.test.tokens" not in self.fields:
            return None
        given: Any = [list(self.fields[key]) for key in ("lstm.test.tokens", "lstm.test.source") if key in self.fields]
        model = load(path)
        found = (
            model.score(*given).logprobs[1:] if self.weights.task != "classifier" else model.classify(*given).logprobs
        )
        logprobs = np.array(found, np.float32)
        if any(matrix.dtype != "f32" for matrix in rounded.values()):
            own = {"lstm.test.logprobs": logprobs, "lstm.test.tolerance": OWN_TOLERANCE}
            format.write(path, self.weights, {**self.fields, **own}, rounded, screen)
        return float(np.abs(logprobs - np.array(self.fields["lstm.test.logprobs"])).max())


def _score(model: Model, text: Text) -> Score:
    if _are_pairs(text):
        assert isinstance(model, Seq2Seq)
        score = _together(model.score([one for _, one in text], [source for source, _ in text]))
    elif isinstance(text, str):
        score = model.score(text, documents=True)
    else:
        score = model.score(cast(Sequence[int], text))
    count = len(score.token_ids)
    if count < FEWEST_TOKENS:
        raise ValueError(
            f"the text is {count} tokens long (it starts with {text[:20]!r:.60}): expected at least {FEWEST_TOKENS}, "
            "since on fewer the loss of perplexity is not known to half a percent"
        )
    return score


def _together(scores: Sequence[Score]) -> Score:
    return Score(
        [token for score in scores for token in score.token_ids],
        [logprob for score in scores for logprob in score.logprobs],
        sum(score.characters for score in scores),
    )


def _loss(before: Score, after: Score) -> TextLoss:
    lost = np.array(before.logprobs) - np.array(after.logprobs)
    rise = math.exp(min(lost.mean(), 700.0))
    error = rise * lost.std() / math.sqrt(len(lost))
    return TextLoss(len(lost), before.perplexity, after.perplexity, 100 * (rise - 1), 100 * float(error))


# ---- auto --------------------------------------------------------------------------------------------


def _choose(source: _Source, path: str | os.PathLike[str], max_loss: float) -> QuantizeReport:
    if source.weights.task != "lm":
        raise ValueError(f"dtype='auto' is for language models, and {source.path} is none: name a type")
    if source.types_before != {"f32"}:
        raise ValueError(f"{source.path}: some weights are rounded already; dtype='auto' starts from float32")
    with tempfile.TemporaryDirectory() as folder, format.atomic(path) as temporary:
        reports = [source.write(os.path.join(folder, f"{n}.gguf"), d) for n, d in enumerate(_CANDIDATES)]
        candidates = _measured(reports)
        good = [n for n, c in enumerate(candidates) if c.loss.percent + c.loss.standard_error <= max_loss]
        best = min(good, key=lambda n: candidates[n].microseconds)  # f32 loses nothing, so there is one
        shutil.copyfile(reports[best].path, temporary)
    table = tuple(sorted(candidates, key=lambda c: c.microseconds))
    return replace(reports[best], path=os.fspath(path), candidates=table)


def _measured(reports: Sequence[QuantizeReport]) -> list[Candidate]:
    times = _microseconds([load(report.path) for report in reports])
    found = []
    for report, time in zip(reports, times, strict=True):
        assert report.loss is not None
        found.append(Candidate(report.dtype, report.bytes, time, report.loss))
    return found


def _microseconds(models: Sequence[Model]) -> list[float]:
    """Median time of a token when each model writes text, in turns, so that what else the machine does meets all."""
    times: list[list[float]] = [[] for _ in models]
    for seed in range(_ROUNDS):
        for model, found in zip(models, times, strict=True):
            start = [0 if model.bos is None else model.bos]
            one = model.generate(start, max_tokens=_DRAWN, seed=seed)
            steps = one.usage["total_tokens"] + (one.finish_reason == "stop")
            found.append(1e6 * one.timings["seconds"] / steps)
    return [statistics.median(found) for found in times]
