# SPDX-License-Identifier: Apache-2.0
"""The models every engine runs: sizes, seeded weights, a float64 decoder to check against, and what a step costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastlm import load
from fastlm.format import unpack

BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4.25}
"""Bits a weight takes. int4: groups of 32 weights share a scale of 8 bits."""

PRECISIONS = tuple(BITS)


@dataclass(frozen=True)
class Workload:
    """An LSTM language model: V words, an embedding of E, L layers of H units."""

    name: str
    V: int
    E: int
    H: int
    L: int
    source: str = ""  # a trained model's file, whose weights are taken
    text: str = ""  # a file with text that it is to write like, where a form makes use of it
    first: int = 1  # the token that the first sequence starts from

    @classmethod
    def of_model(cls, source: Path, text: Path | None = None, name: str = "") -> Workload:
        """A trained model in float32, all of whose LSTM layers are of one size."""
        weights = unpack(source)
        units = {layer.units for layer in weights.layers}
        if len(units) > 1:
            raise ValueError(f"{source}: expected layers of one size, found {sorted(units)}")
        sizes = *weights.embedding.shape, units.pop(), len(weights.layers)
        bos = load(source).bos
        return cls(
            name or source.stem,
            *sizes,
            source=str(source.resolve()),
            text=str(text.resolve()) if text else "",
            first=1 if bos is None else bos,
        )

    @cached_property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Random float32 arrays with Keras' shapes and gate order (i, f, g, o), named as `fastlm.export` takes them.

        The ranges keep the text lively: the state neither dies out nor saturates, and greedy decoding walks through
        many tokens instead of repeating one, so equal tokens mean equal arithmetic. The output layer is as sharp as a
        trained one, so that top_p keeps hundreds of 10 000 words and not most of them.
        """
        if self.source:
            weights = unpack(self.source)
            return {
                **weights.to_dict(),
                "output.kernel": weights.embedding.T if weights.output is None else weights.output,
            }
        random = np.random.default_rng(2026)

        def uniform(limit: float, *shape: int) -> NDArray[np.float32]:
            return random.uniform(-limit, limit, shape).astype(np.float32)

        weights = {"embedding": uniform(0.5, self.V, self.E)}
        for layer in range(self.L):
            inputs = self.E if layer == 0 else self.H
            weights[f"lstm.{layer}.kernel"] = uniform(3 / inputs**0.5, inputs, 4 * self.H)
            weights[f"lstm.{layer}.recurrent_kernel"] = uniform(3 / self.H**0.5, self.H, 4 * self.H)
            weights[f"lstm.{layer}.bias"] = uniform(0.1, 4 * self.H)
        weights["output.kernel"] = uniform(40 / self.H**0.5, self.H, self.V)
        weights["output.bias"] = uniform(0.1, self.V)
        return weights

    def texts(self) -> list[list[int]]:
        """Texts to score, as long as sentences are: 8 to 48 tokens, drawn evenly."""
        random = np.random.default_rng(2027)
        lengths = random.integers(8, 49, 256 if self.products < 1e6 else 64)  # about a second of work at most
        return [random.integers(0, self.V, length).tolist() for length in lengths]

    def forget_weights(self) -> None:
        """Free them; they are made again when asked for."""
        self.__dict__.pop("weights", None)

    def start(self, batch: int) -> list[int]:
        """The token each sequence of a batch starts from, with a state of zeros: those from ``first`` on."""
        return [(self.first + sequence) % self.V for sequence in range(batch)]

    # ---- what a step must cost -----------------------------------------------------------------------

    @property
    def products(self) -> int:
        """Multiply-adds that no engine can avoid for a token.

        The first layer's input product depends on the token alone, so one row of 4H gate inputs can stand for it.
        """
        recurrent = self.L * self.H * 4 * self.H
        between_layers = (self.L - 1) * self.H * 4 * self.H
        return recurrent + between_layers + self.H * self.V

    def streamed_bytes(self, precision: str = "f32", batch: int = 1) -> int:
        """Bytes of weights that a step must read: every product's weight once, and a row of gate inputs (f32) for each
        sequence; int8 also one f32 scale for each row of a matrix."""
        rows = (2 * self.L - 1) * 4 * self.H + self.V
        scales = 4 * rows if precision == "int8" else 0
        return int(self.products * BITS[precision] / 8) + scales + batch * 4 * 4 * self.H


class Reference:
    """The workload in float64, which every engine's tokens are held against."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._weights = {name: array.astype(np.float64) for name, array in workload.weights.items()}
        self._greedy: list[int] = []

    def greedy(self, count: int) -> list[int]:
        """The first `count` greedy tokens of the first sequence."""
        if len(self._greedy) < count:
            tokens, state = self._workload.start(1), self._fresh(1)
            for _ in range(count):
                tokens.append(int(np.argmax(self._step(tokens[-1:], state))))
            self._greedy = tokens[1:]
        return self._greedy[:count]

    def regret(self, texts: list[list[int]]) -> float:
        """How far the chosen tokens fall short of the best ones: the largest difference of two logits, in standard
        deviations of the logits at that step, when the reference reads the same tokens. 0: each was the best.

        An engine with rounded weights soon writes another text, but each of its tokens must be as good as the best
        for the reference, or nearly so; a random token falls short by 2 to 4.
        """
        steps = np.array(texts).T
        inputs, state, worst = self._workload.start(len(texts)), self._fresh(len(texts)), 0.0
        for chosen in steps:
            logits = self._step(inputs, state)
            short = logits.max(axis=1) - logits[np.arange(len(chosen)), chosen]
            worst = max(worst, float((short / logits.std(axis=1)).max()))
            inputs = chosen
        return worst

    def logprobs(self, text: list[int]) -> NDArray[np.float64]:
        """Of each token but the first, given those before it."""
        state, found = self._fresh(1), []
        for token, following in pairwise(text):
            logits = self._step([token], state)[0]
            found.append(logits[following] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
        return np.array(found)

    def _fresh(self, batch: int) -> NDArray[np.float64]:
        return np.zeros((self._workload.L, 2, batch, self._workload.H))

    def _step(self, tokens: list[int], state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits [B, V] after tokens [B]; the state [L, (h, c), B, H] is replaced."""
        w, x = self._weights, self._weights["embedding"][tokens]
        for layer, (h, c) in enumerate(state):
            kernel, recurrent, bias = (w[f"lstm.{layer}.{part}"] for part in ("kernel", "recurrent_kernel", "bias"))
            i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
            c[:] = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h[:] = x = _sigmoid(o) * np.tanh(c)
        return x @ w["output.kernel"] + w["output.bias"]


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("char", V=96, E=64, H=256, L=1),
        Workload("smiles", V=40, E=256, H=512, L=3),
        Workload("ptb-medium", V=10_000, E=650, H=650, L=2),
        Workload("bpe-32k", V=32_000, E=512, H=1024, L=2),
        Workload("wt2-large", V=33_278, E=1500, H=1500, L=2),
    )
}
