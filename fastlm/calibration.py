# SPDX-License-Identifier: Apache-2.0
"""How the inputs of a model's matrices go together, which rounding to int4 and screens make use of. No data is needed:
the text is the model's own."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastlm import _engine, float64
from fastlm.format import PANEL
from fastlm.model import Model
from fastlm.rounding import Array
from fastlm.seq2seq import Seq2Seq
from fastlm.weights import LSTMWeights, Weights

_WINDOW = 256
_PAIRS = 128
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


def windows(tokens: Sequence[int]) -> npt.NDArray[np.int32]:
    """Token ids int32 [n, 256] out of a text, at most 32, evenly spread over it."""
    length = min(_WINDOW, len(tokens))
    most = min(_SHAPE[0], len(tokens) // length)
    starts = np.linspace(0, len(tokens) - length, most).astype(int)
    return np.array([tokens[start : start + length] for start in starts], np.int32)


def output_states(model: Model, tokens: npt.NDArray[np.int32], skipped: int = 0) -> Array:
    """The inputs of the output matrix, float32 [streams · (T - skipped), K], when the fresh model reads ``tokens``
    [streams, T], after all but the first ones."""
    units = model._engine.info()["units"][-1]
    top = 2 * (units + -units % PANEL)  # h, then c
    decoder, found = _engine.Decoder(model._engine), []
    for stream in tokens:
        state = _engine.State(model._engine)
        decoder.feed(state, array("i", stream[:skipped]))
        for token in stream[skipped:]:
            decoder.feed(state, array("i", [token]))
            found.append(np.frombuffer(state.values(), np.float32)[-top:][:units])
    return np.array(found)


def states_of_pairs(model: Model, weights: Weights, pairs: Sequence[tuple[str, str]]) -> Array:
    """The inputs of the output matrix, float32 [N, K], when a model with a source reads the texts of at most 128 of the
    pairs, evenly spread."""
    assert isinstance(model, Seq2Seq)
    found = []
    for at in np.linspace(0, len(pairs) - 1, min(_PAIRS, len(pairs))).astype(int):
        source, text = pairs[at]
        tokens = np.array([model.bos, *model.encode(text)], np.int32)
        states, _ = float64.output_states(weights, tokens, np.array(model.encode_source(source), np.int32))
        found.append(states.astype(np.float32))
    return np.concatenate(found)


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
