# SPDX-License-Identifier: Apache-2.0
"""The learning rate over a run, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass

WARM_UP_STEPS = 200
WARM_UP_SHARE = 0.05
"""Of the budget, where that is less: a short run should not be all warm-up."""
ANNEAL_FROM = 0.5
LAST = 0.01


@dataclass
class Schedule:
    """Warm up, hold, halve on plateaus of the validation loss, anneal to the end of the budget.

    The second half of the budget takes the rate down in a straight line to a hundredth (a "trapezoid",
    Hägele et al. 2024: as good as a cosine, and a run whose budget grows loses nothing of its first half).
    Plateaus no longer count then: the loss moves little near the end, and both together end the run early.

    Attributes
    ----------
    base : float
        The learning rate asked for.
    factor : float
        What plateaus have left of it.
    best : float
        Lowest validation loss so far, nats a token.
    waited : int
        Evaluations since then.
    """

    base: float
    factor: float = 1.0
    best: float = float("inf")
    waited: int = 0

    PATIENCE = 3
    STOP = 9

    def rate(self, step: int, progress: float) -> float:
        """The rate for a step, at a share ``progress`` (0 to 1) of the budget."""
        warm = min(1.0, max((step + 1) / WARM_UP_STEPS, progress / WARM_UP_SHARE))
        anneal = min(1.0, max(LAST, (1 - progress) / (1 - ANNEAL_FROM)))
        return self.base * self.factor * warm * anneal

    def observe(self, loss: float, progress: float) -> bool:
        """Take note of a validation loss at a share ``progress`` of the budget; True if it is the best so far."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return True
        self.waited += 1
        if self.waited % self.PATIENCE == 0 and progress < ANNEAL_FROM:
            self.factor /= 2
        return False

    @property
    def exhausted(self) -> bool:
        """Nothing has helped for `STOP` evaluations."""
        return self.waited >= self.STOP
