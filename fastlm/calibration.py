# SPDX-License-Identifier: Apache-2.0
"""How the inputs of a model's matrices go together, which rounding to int4 makes use of. No data is needed: the text
is the model's own."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from fastlm.format import LSTMWeights, Weights
from fastlm.model import Model
from fastlm.rounding import Array

_SHAPE = (32, 128)  # streams and tokens of each: 4 times as many change nothing on the bundled model


def own_text(model: Model) -> npt.NDArray[np.int32]:
    """Token ids int32 [32, 128] as the model draws them, text behind text: always the same."""
    streams, length = _SHAPE
    start = 0 if model.bos is None else model.bos
    tokens: list[int] = []
    for seed in itertools.count():
        if len(tokens) >= streams * length:
            break
        text = model.generate([start], max_tokens=length, temperature=1.0, top_k=0, top_p=1.0, seed=seed)
        tokens += [start, *text.token_ids]
    return np.array(tokens[: streams * length], np.int32).reshape(streams, length)


def input_moments(weights: Weights, tokens: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[np.float64]]:
    """Mean products x · xᵀ, float64 [K, K], of the inputs of each matrix that is multiplied, by its name
    (`fastlm.format.matrices`), when a fresh network reads ``tokens`` [streams, T]."""
    found = {}
    x = weights.embedding[tokens]
    for n, layer in enumerate(weights.layers):
        found[f"blk.{n}.x"] = _mean_products(x)
        h = _states(layer, x)
        found[f"blk.{n}.h"] = _mean_products(h[:, :-1])
        x = h[:, 1:]
    return {**found, "output": _mean_products(x)}


def _mean_products(x: Array) -> npt.NDArray[np.float64]:
    rows = x.reshape(-1, x.shape[-1])
    return np.asarray((rows.T @ rows).astype(np.float64) / len(rows))


def _states(layer: LSTMWeights, x: Array) -> Array:
    """h [streams, T + 1, H] of a fresh layer before and after each input [streams, T, K]."""
    h = np.zeros((x.shape[0], x.shape[1] + 1, layer.units), np.float32)
    c = h[:, 0]
    for t, z in enumerate((x @ layer.kernel + layer.bias).swapaxes(0, 1)):
        i, f, g, o = np.split(z + h[:, t] @ layer.recurrent, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h[:, t + 1] = _sigmoid(o) * np.tanh(c)
    return h


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x), np.float32)
