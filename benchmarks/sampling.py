# SPDX-License-Identifier: Apache-2.0
"""Top-p sampling from an engine's logits, as a careful user writes it in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Sampler:
    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self._scale, self._top_p = np.float32(1 / temperature), top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """A token drawn from logits [V]: the fewest likeliest tokens whose probabilities reach top_p stay."""
        p = np.exp((logits - logits.max()) * self._scale)
        total = p.sum()
        # Tokens below the mean of what may be left out weigh, all together, less than that: only the others are sorted.
        likely = np.flatnonzero(p >= (1 - self._top_p) * total / len(p))
        likely = likely[np.argsort(-p[likely])]
        cumulated = np.cumsum(p[likely])
        kept = 1 + int(np.searchsorted(cumulated[:-1], self._top_p * total))
        place = np.searchsorted(cumulated[:kept], self._random.random() * cumulated[kept - 1], side="right")
        return int(likely[min(place, kept - 1)])
