# SPDX-License-Identifier: Apache-2.0
"""Where a training run stands, and a line of text that shows it."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TextIO, TypeAlias

from fastlm.training.evaluation import Evaluation


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Attributes
    ----------
    step : int
        Steps done.
    epoch : float
        Epochs done.
    loss : float
        Mean nats a token of the training text over the last hundred steps or so, with dropout; of a classifier, nats a
        text.
    valid : Evaluation or None
        The last evaluation of this session.
    seen : Evaluation or None
        The same of as much of the training data, without dropout, if a `GapCurve` asks for it.
    learning_rate : float
        Of the step.
    tokens_per_second : float
        Mean over the run, validation included.
    seconds, seconds_left : float
        Since the run began, all its sessions together, and until its budget is used up.
    labels : bool
        Whether what is predicted are labels: what counts as tokens are texts.
    """

    step: int
    epoch: float
    loss: float
    valid: Evaluation | None
    learning_rate: float
    tokens_per_second: float
    seconds: float
    seconds_left: float
    labels: bool = False
    seen: Evaluation | None = None

    @property
    def gap(self) -> float | None:
        """By how many nats a token the model knows what it has seen better than what it has not."""
        return None if self.valid is None or self.seen is None else self.valid.nats_per_token - self.seen.nats_per_token

    def __str__(self) -> str:
        perplexity = "" if self.labels else f"perplexity {math.exp(min(self.loss, 700)):.1f}  "
        line = (
            f"step {self.step}  epoch {self.epoch:.2f}  loss {self.loss:.3f}  {perplexity}"
            f"{self.tokens_per_second:,.0f} {'texts' if self.labels else 'tokens'}/s  "
            f"learning rate {self.learning_rate:.1e}  {_clock(self.seconds_left)} left"
        )
        if self.valid is not None:
            line += f"  | valid {self.valid}"
        if self.gap is not None:
            line += f"  | gap {self.gap:.3f}"
        return line


Report: TypeAlias = Callable[[Progress], None]


class ProgressLine:
    """Writes to a text stream: one line kept up to date on a terminal, a line now and then in a log.

    Every evaluation leaves a line of its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._pause = 0.5 if self._terminal else 30.0
        self._shown = -math.inf
        self._valid: Evaluation | None = None

    def __call__(self, progress: Progress) -> None:
        evaluated = progress.valid is not self._valid
        if time.monotonic() - self._shown < self._pause and not evaluated:
            return
        self._shown, self._valid = time.monotonic(), progress.valid
        if self._terminal:
            self._stream.write(f"\r\x1b[K{progress}" + ("\n" if evaluated else ""))
        else:
            self._stream.write(f"{progress}\n")
        self._stream.flush()


class GapCurve(ProgressLine):
    """As a `ProgressLine`, with the gap between training and validation text, which is also written down.

    Parameters
    ----------
    path : path
        A file with a line for every evaluation, a JSON object: ``epoch``, and ``train`` and ``valid`` in nats a token.
        `fastlm.report.report` draws it. A run that is continued goes on in it, another begins it anew.
    stream : text stream, optional
        To write lines to; default: standard error. False: nothing is shown.
    """

    def __init__(self, path: str | os.PathLike[str], stream: TextIO | Literal[False] | None = None) -> None:
        super().__init__(io.StringIO() if stream is False else stream or sys.stderr)
        self._path, self._began = path, False
        with open(path, "a+") as file:  # now, not after the first epoch, it is known whether it can be written
            file.seek(0)
            if (first := file.readline().strip()) and _epoch(first) is None:
                raise ValueError(f"{os.fspath(path)}: no curve of a training, which would be overwritten")

    def __call__(self, progress: Progress) -> None:
        if not self._began:
            self._keep(progress)
        evaluated = progress.valid is not self._valid
        super().__call__(progress)
        if progress.valid is None or progress.seen is None or not evaluated:
            return
        row = {
            "epoch": round(progress.epoch, 4),
            "train": round(progress.seen.nats_per_token, 5),
            "valid": round(progress.valid.nats_per_token, 5),
        }
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def _keep(self, first: Progress) -> None:
        """What was written before the step with which a run begins or is continued."""
        self._began = True
        with open(self._path, "r+") as file:
            known = [(line, _epoch(line)) for line in file if first.step > 1]
            lines = [line for line, epoch in known if epoch is not None and epoch < round(first.epoch, 4)]
            file.seek(0)
            file.truncate()
            file.writelines(lines)


def _epoch(line: str) -> float | None:
    """Of a row of a curve; None if it is none, or was cut off."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return None


def reporter(progress: bool | TextIO | Report) -> Report:
    """What the caller gave as ``progress`` as a function: True writes to standard error, False nothing.

    Raises
    ------
    TypeError
        If it is neither a bool, a function nor a text stream.
    """
    if progress is False:
        return lambda _: None
    if progress is True:
        return ProgressLine(sys.stderr)
    if callable(progress):
        return progress
    if hasattr(progress, "write"):
        return ProgressLine(progress)
    raise TypeError(f"progress: expected True, False, a function or a text stream, found {progress!r}")


def _clock(seconds: float) -> str:
    if not seconds < 1e6:  # the first step says nothing about the last
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
