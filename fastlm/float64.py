# SPDX-License-Identifier: Apache-2.0
"""What a model's arrays compute, in float64 and without the engine: what an export is checked against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm.weights import Attention, ClassifierWeights, Dense, Encoder, LSTMWeights, Stack, Weights

Float64 = npt.NDArray[Any]


def log_softmax(logits: Float64) -> Float64:
    """Natural logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def logits(weights: Weights, tokens: npt.NDArray[np.int32], source: npt.NDArray[np.int32] | None = None) -> Float64:
    """Logits [T, V] in float64 after each token, from a fresh network, or behind a source: what arrays are checked
    against."""
    x, shares = output_states(weights, tokens, source)
    output = weights.embedding.T if weights.output is None else weights.output
    found: Float64 = x @ output.astype(np.float64) + weights.output_bias
    if weights.attention is None or weights.attention.copy is None or source is None:
        return found
    return _with_copies(log_softmax(found), _dense(weights.attention.copy, x), np.stack(shares), source)


def output_states(
    weights: Weights, tokens: npt.NDArray[np.int32], source: npt.NDArray[np.int32] | None = None
) -> tuple[Float64, list[Float64]]:
    """What the output layer reads, [T, K], after each token; and with attention, the logarithms of the weights of the
    source's places."""
    x = weights.embedding[tokens].astype(np.float64)
    states = [(np.zeros(layer.units), np.zeros(layer.units)) for layer in weights.layers]
    outputs = None
    if weights.encoder is not None:
        assert source is not None
        outputs, states = _source(weights, weights.encoder, source)
    if weights.attention is not None:
        assert outputs is not None
        return _attended(weights, weights.attention, outputs, states, x)
    for layer, state in zip(weights.layers, states, strict=True):
        x, _, _ = _lstm(layer, x, *state)
    return x, []


def _dense(dense: Dense, x: Float64) -> Float64:
    return np.asarray(x @ dense.kernel.astype(np.float64) + dense.bias)


def _with_copies(logprobs: Float64, gate: Float64, shares: Float64, source: npt.NDArray[np.int32]) -> Float64:
    """Log-probabilities [T, V] of tokens that are written with some log-odds [T, 1], else copied from places of the
    source, by the logarithms of their shares [T, S]."""
    found, copied = logprobs - np.logaddexp(0, -gate), shares - np.logaddexp(0, gate)
    for place, token in enumerate(source):
        found[:, token] = np.logaddexp(found[:, token], copied[:, place])
    return np.asarray(found)


def label_logits(weights: ClassifierWeights, tokens: npt.NDArray[np.int32]) -> Float64:
    """Logits [labels] of a classifier for a text."""
    outputs, ends = _stack(weights.layers, weights.embedding[tokens].astype(np.float64))
    pooling, last = weights.pooling, ends[-1][0]
    if pooling.kind == "attention":
        assert pooling.key is not None and pooling.score is not None  # noqa: PT018
        scores = np.tanh(outputs @ pooling.key.kernel + pooling.key.bias) @ pooling.score
        share = np.exp(scores - scores.max())
        pooled = share @ outputs / share.sum()
    else:
        found = {"last": last, "max": outputs.max(0), "mean": outputs.mean(0)}
        pooled = np.concatenate([*found.values()]) if pooling.kind == "concat" else found[pooling.kind]
    return np.asarray(pooled @ weights.output.kernel + weights.output.bias)


def _lstm(layer: LSTMWeights, x: Float64, h: Float64, c: Float64) -> tuple[Float64, Float64, Float64]:
    """Outputs [T, H] for inputs [T, K], and the last h and c."""
    kernel, recurrent, bias = (a.astype(np.float64, copy=False) for a in (layer.kernel, layer.recurrent, layer.bias))
    out = []
    for z in x @ kernel + bias:
        i, f, g, o = np.split(z + h @ recurrent, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out), h, c


def _stack(stack: Stack, x: Float64) -> tuple[Float64, list[tuple[Float64, Float64]]]:
    """The last layer's outputs [S, D], and the last h and c of each layer, its directions side by side."""
    ends = []
    for forward, backward in stack:
        ways = [_lstm(forward, x, np.zeros(forward.units), np.zeros(forward.units))]
        if backward is not None:
            out, h, c = _lstm(backward, x[::-1], np.zeros(backward.units), np.zeros(backward.units))
            ways.append((out[::-1], h, c))
        x, h, c = (np.concatenate(parts, axis=-1) for parts in zip(*ways, strict=True))
        ends.append((h, c))
    return x, ends


def _source(
    weights: Weights, encoder: Encoder, source: npt.NDArray[np.int32]
) -> tuple[Float64, list[tuple[Float64, Float64]]]:
    """The encoder's outputs [S, D], and the first state of each of the decoder's layers."""
    embedding = weights.embedding if encoder.embedding is None else encoder.embedding
    x, ends = _stack(encoder.layers, embedding[source].astype(np.float64))
    states = []
    for n, bridge in enumerate(encoder.bridges):
        h, c = ends[min(n, len(ends) - 1)]
        if bridge is not None:
            both = np.concatenate([h, c])
            h = np.tanh(both @ bridge.h.kernel + bridge.h.bias)
            c = both @ bridge.c.kernel + bridge.c.bias
        states.append((h, c))
    return x, states


def _attended(
    weights: Weights, a: Attention, outputs: Float64, states: list[tuple[Float64, Float64]], x: Float64
) -> tuple[Float64, list[Float64]]:
    """What the output layer reads, [T, A], and the logarithms of the weights of the source's places at each step."""
    given, found, shares = np.zeros(a.units), [], []
    keys = outputs if a.key is None else outputs @ a.key
    first, *others = weights.layers
    fed = first.kernel if a.feed is None else np.concatenate([first.kernel, a.feed])  # as further inputs
    layers = [_wide(layer) for layer in (LSTMWeights(fed, first.recurrent, first.bias), *others)]
    for value in x:
        y = (value if a.feed is None else np.concatenate([value, given]))[None]
        for n, layer in enumerate(layers):
            y, h, c = _lstm(layer, y, *states[n])
            states[n] = (h, c)
        hidden = y[0]
        if a.query is None or a.score is None:
            scores = keys @ hidden
        else:
            scores = np.tanh(keys + hidden @ a.query.kernel + a.query.bias) @ a.score
        shares.append(log_softmax(scores))
        context = np.exp(shares[-1]) @ outputs
        given = np.tanh(context @ a.context + hidden @ a.hidden + a.bias)
        found.append(given)
    return np.stack(found), shares


def _wide(layer: LSTMWeights) -> LSTMWeights:
    wide: Any = (a.astype(np.float64) for a in (layer.kernel, layer.recurrent, layer.bias))
    return LSTMWeights(*wide)


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2))
