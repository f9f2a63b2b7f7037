# SPDX-License-Identifier: Apache-2.0
"""The models every engine decodes: sizes, seeded weights, and a float64 decoder to check against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FIRST_TOKEN = 1
"""Every engine starts from this token and a state of zeros."""


@dataclass(frozen=True)
class Workload:
    """An LSTM language model: V words, an embedding of E, L layers of H units."""

    name: str
    V: int
    E: int
    H: int
    L: int

    @cached_property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Random float32 arrays with Keras' shapes and gate order (i, f, g, o), named as `fastlm.export` takes them.

        The ranges keep the text lively: the state neither dies out nor saturates, and greedy decoding walks through
        many tokens instead of repeating one, so equal tokens mean equal arithmetic.
        """
        random = np.random.default_rng(2026)

        def uniform(limit: float, *shape: int) -> NDArray[np.float32]:
            return random.uniform(-limit, limit, shape).astype(np.float32)

        weights = {"embedding": uniform(0.5, self.V, self.E)}
        for layer in range(self.L):
            inputs = self.E if layer == 0 else self.H
            weights[f"lstm.{layer}.kernel"] = uniform(3 / inputs**0.5, inputs, 4 * self.H)
            weights[f"lstm.{layer}.recurrent_kernel"] = uniform(3 / self.H**0.5, self.H, 4 * self.H)
            weights[f"lstm.{layer}.bias"] = uniform(0.1, 4 * self.H)
        weights["output.kernel"] = uniform(3 / self.H**0.5, self.H, self.V)
        weights["output.bias"] = uniform(0.1, self.V)
        return weights

    @property
    def streamed_bytes(self) -> int:
        """Bytes of float32 weights that no engine can avoid to read for a token.

        The first layer's input product depends on the token alone, so one row of 4H gate inputs can stand for it.
        """
        recurrent = self.L * self.H * 4 * self.H
        between_layers = (self.L - 1) * self.H * 4 * self.H
        return 4 * (4 * self.H + recurrent + between_layers + self.H * self.V)

    def reference(self, count: int) -> list[int]:
        """The first `count` greedy tokens, computed in float64."""
        w = {name: array.astype(np.float64) for name, array in self.weights.items()}
        h, c = np.zeros((2, self.L, self.H))
        tokens = [FIRST_TOKEN]
        for _ in range(count):
            x = w["embedding"][tokens[-1]]
            for layer in range(self.L):
                kernel, recurrent, bias = (w[f"lstm.{layer}.{part}"] for part in ("kernel", "recurrent_kernel", "bias"))
                i, f, g, o = np.split(x @ kernel + h[layer] @ recurrent + bias, 4)
                c[layer] = _sigmoid(f) * c[layer] + _sigmoid(i) * np.tanh(g)
                h[layer] = x = _sigmoid(o) * np.tanh(c[layer])
            tokens.append(int(np.argmax(x @ w["output.kernel"] + w["output.bias"])))
        return tokens[1:]


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("char", V=96, E=64, H=256, L=1),
        Workload("ptb-medium", V=10_000, E=650, H=650, L=2),
    )
}
