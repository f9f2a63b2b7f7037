# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches in, better weights out, nothing lost on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from fastlm.exporter import ExportReport
from fastlm.training import checkpoint
from fastlm.training.evaluation import Evaluation
from fastlm.training.optimizer import Adam
from fastlm.training.options import LabelOptions, differences
from fastlm.training.progress import GapCurve, Progress, Report
from fastlm.training.recurrence import Tensor
from fastlm.training.schedule import Schedule

SAVE_SECONDS = 60.0
"""Between checkpoints. Saving 20 million weights takes half a second."""

SMOOTHING = 0.01
"""Weight of a step in the training loss that is shown."""


class Task(Protocol):
    """What is trained: weights, batches and a loss."""

    variables: list[Any]
    specs: tuple[Any, ...]
    """Of a batch's tensors."""
    state: list[Any]
    """Variables that a step leaves for the next; not trained."""
    per_epoch: int
    evaluate_every: int
    """Steps between evaluations."""
    digests: list[str]
    """Of the data: tell whether a resumed run reads the same."""
    first_loss: float
    """Of a network that knows nothing, nats a token."""

    def fields(self) -> dict[str, Any]:
        """What a checkpoint keeps of it besides weights: its tokenizer, as a model file has it."""

    def from_step(self, first: int) -> Iterable[tuple[Any, ...]]:
        """The endless stream of batches from step ``first`` on."""

    def tokens_of(self, batch: tuple[Any, ...]) -> int:
        """That are predicted."""

    def loss(self, batch: tuple[Any, ...], seed: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """In the graph: what is made small, mean nats a token, and the state after. ``seed``: (seed, step)."""

    def evaluate(self, seen: bool = False) -> Evaluation:
        """Of the present weights, on held-out data; or on as much of the training data, without dropout."""

    def export(self, target: Path, metadata: Mapping[str, str]) -> ExportReport:
        """Writes the present weights as a model file."""


class Trainer:
    """A run: a task's weights, optimizer, schedule, and the best weights so far.

    Everything random depends on (seed, step) alone, so a run that is continued goes where it would have
    gone (except that a time limit makes the learning rate follow the clock).

    Parameters
    ----------
    options : Options
    task : Task

    Attributes
    ----------
    step, tokens : int
        Steps done, and tokens predicted in them.
    seconds : float
        Time used, all sessions together.
    loss : float
        Smoothed training loss, nats a token.
    best : Evaluation or None
        The best evaluation so far; `run` leaves its weights in the model.
    """

    def __init__(self, options: Any, task: Task) -> None:
        self.options, self.task = options, task
        self._optimizer = Adam(task.variables)
        rest = tf.TensorSpec([2], tf.int64), tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.float32)
        self._update = tf.function(self._update_in_graph, input_signature=[task.specs, *rest])
        self._schedule = Schedule(options.learning_rate)
        self._best_weights = self._weights()
        self._evaluated, self._evaluation_seconds = -1, 0.0
        self._valid: Evaluation | None = None
        self._seen: Evaluation | None = None
        self.best: Evaluation | None = None
        self.step, self.tokens, self.seconds, self.loss = 0, 0, 0.0, task.first_loss

    @property
    def epochs(self) -> float:
        """Epochs done."""
        return self.step / self.task.per_epoch

    def run(self, path: Path, report: Report, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train until the budget is used up or nothing helps any more, then take up the best weights.

        Parameters
        ----------
        path : Path
            The checkpoint: written at the start, every minute, at every evaluation and at the end.
        report : function
            Called with a `Progress` after every step.
        stop : function
            Asked before every step; True saves and ends the session.

        Returns
        -------
        bool
            False if ``stop`` ended it: the run can be continued.

        Raises
        ------
        FloatingPointError
            If the loss is no longer finite. The checkpoint is from before.
        OSError
            If the checkpoint cannot be written.
        """
        began, seen = time.monotonic() - self.seconds, isinstance(report, GapCurve)
        self.save(path)
        saved = time.monotonic()
        for batch in self.task.from_step(self.step):
            stopped = stop()
            if stopped or self._share() >= 1 or self._schedule.exhausted:
                break
            self._take_step(batch)
            if self.step % self.task.evaluate_every == 0:
                self._validate(seen)
            self.seconds = time.monotonic() - began
            if self._evaluated == self.step or time.monotonic() - saved > SAVE_SECONDS:
                self.save(path)
                saved = time.monotonic()
            report(self._progress())
        if not stopped and self._evaluated != self.step:
            self._validate(seen)
            report(self._progress())
        self.seconds = time.monotonic() - began
        self.save(path)
        if not stopped:
            self._assign(self.task.variables, self._best_weights)
        return not stopped

    def _take_step(self, batch: tuple[Any, ...]) -> None:
        seed = tf.constant([self.options.seed, self.step], tf.int64)
        given = tuple(tf.convert_to_tensor(part) for part in batch)
        loss = float(self._update(given, seed, np.float32(self._rate()), np.float32(self.step)))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss became {loss} at step {self.step}: "
                f"try a learning_rate smaller than {self.options.learning_rate}"
            )
        self.step += 1
        self.tokens += self.task.tokens_of(batch)
        self.loss += max(SMOOTHING, 1 / self.step) * (loss - self.loss)

    def _update_in_graph(self, batch: tuple[Tensor, ...], seed: Tensor, rate: Tensor, step: Tensor) -> Tensor:
        variables = self.task.variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss, nats, after = self.task.loss(batch, seed)
        self._optimizer.apply(tape.gradient(loss, variables), rate, step)
        self._assign(self.task.state, after)
        return nats

    def _share(self) -> float:
        """Share of the budget that is used up, 0 to 1: of the epochs or of the time, whichever is more.

        The time leaves room for the evaluation at the end.
        """
        share = 0.0
        if self.options.epochs is not None:
            share = self.epochs / self.options.epochs
        if self.options.time_limit is not None:
            share = max(share, self.seconds / max(1e-9, self.options.time_limit - self._evaluation_seconds))
        return min(1.0, share)

    def _rate(self) -> float:
        return self._schedule.rate(self.step, self._share())

    def _validate(self, seen: bool) -> None:
        began = time.monotonic()
        self._valid = self.task.evaluate()
        self._seen = self.task.evaluate(seen=True) if seen else None
        self._evaluation_seconds = time.monotonic() - began
        self._evaluated = self.step
        if self._schedule.observe(self._valid.nats_per_token, self._share()):
            self.best, self._best_weights = self._valid, self._weights()

    def _weights(self) -> list[Any]:
        return [v.numpy() for v in self.task.variables]

    @staticmethod
    def _assign(variables: list[Any], values: list[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def _progress(self) -> Progress:
        seconds, share = max(self.seconds, 1e-9), self._share()
        return Progress(
            step=self.step,
            epoch=self.epochs,
            loss=self.loss,
            valid=self._valid,
            seen=self._seen,
            learning_rate=self._rate(),
            tokens_per_second=self.tokens / seconds,
            seconds=seconds,
            seconds_left=seconds * (1 - share) / max(share, 1e-9),
            labels=isinstance(self.options, LabelOptions),
        )

    def save(self, path: Path) -> None:
        """Write the whole run to ``path``, see `checkpoint.save`."""
        meta = {
            "options": asdict(self.options),
            "tokenizer": self.task.fields(),
            "digests": self.task.digests,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": self.loss,
            "schedule": asdict(self._schedule),
            "best": asdict(self.best) if self.best else None,
        }
        groups: checkpoint.Arrays = {
            "weights": self._weights(),
            "moments": [v.numpy() for v in self._optimizer.moments],
            "state": [v.numpy() for v in self.task.state],
            "best": self._best_weights,
        }
        checkpoint.save(path, meta, groups)

    def restore(self, meta: dict[str, Any], groups: checkpoint.Arrays) -> None:
        """Continue the run that `save` wrote.

        Raises
        ------
        ValueError
            If that run had other options or another text, naming what differs.
        """
        differ = differences(meta["options"], self.options)
        if meta["digests"] != self.task.digests:
            differ.append("the text is another")
        if differ:
            raise ValueError(f"the checkpoint is of another run: {'; '.join(differ)}")
        self._assign(self.task.variables, groups["weights"])
        self._assign(self._optimizer.moments, groups["moments"])
        self._assign(self.task.state, groups.get("state", []))
        self._best_weights = groups["best"]
        self._schedule = Schedule(**{**meta["schedule"], "base": self.options.learning_rate})
        self.step, self.tokens, self.seconds, self.loss = (meta[k] for k in ("step", "tokens", "seconds", "loss"))
        self.best = Evaluation(**meta["best"]) if meta["best"] else None
