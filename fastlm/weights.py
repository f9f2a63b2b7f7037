# SPDX-License-Identifier: Apache-2.0
"""The weights of a model as plain arrays in Keras' shapes, by name and by what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from fastlm.rounding import Array

LARGEST_WEIGHT = 2.0**40  # beyond it sums could overflow (docs/numerics.md)


@dataclass(frozen=True)
class LSTMWeights:
    """One LSTM layer in Keras' shapes and gate order (i, f, g, o): ``kernel`` [inputs, 4 H], ``recurrent`` [H, 4 H],
    ``bias`` [4 H] (zeros if the layer has none), float32."""

    kernel: Array
    recurrent: Array
    bias: Array

    @property
    def units(self) -> int:
        return len(self.recurrent)


@dataclass(frozen=True)
class Dense:
    """``kernel`` [inputs, outputs] and ``bias`` [outputs], float32."""

    kernel: Array
    bias: Array


@dataclass(frozen=True)
class Bridge:
    """From the last state of an encoder layer, h and c of its directions side by side (h h c c), to the first one of a
    decoder layer: tanh of ``h`` and ``c``, as it is."""

    h: Dense
    c: Dense


Stack: TypeAlias = "tuple[tuple[LSTMWeights, LSTMWeights | None], ...]"
"""LSTM layers, each forward and, or None, backward; what is read above are the outputs of both, side by side."""


def widths(stack: Stack) -> tuple[int, ...]:
    """Values of each layer's outputs."""
    return tuple(sum(way.units for way in pair if way) for pair in stack)


@dataclass(frozen=True)
class Encoder:
    """What reads a source: ``embedding`` [V of the source, E] (None: the decoder's), LSTM layers, and for each decoder
    layer a bridge (None: it starts from the state as it is)."""

    embedding: Array | None
    layers: Stack
    bridges: tuple[Bridge | None, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Values of each layer's outputs."""
        return widths(self.layers)


@dataclass(frozen=True)
class Attention:
    """Where a decoder looks at encoder outputs of D values, with hidden values of H on top, float32.

    Scores are products of the hidden values with each place's output times ``key`` [D, H] (None: with the output
    itself): Luong et al. 2015, "general" and "dot". With a ``query`` they are score · tanh(output · key + hidden ·
    query + bias), of A values each: Bahdanau et al. 2015. The softmax of the scores weighs the outputs; their mean, the
    context, and the hidden values become tanh(context · ``context`` [D, A] + hidden · ``hidden`` [H, A] + ``bias``
    [A]), which the output layer reads, and the first LSTM layer of the next step, too, if there is a ``feed`` [A, 4 H
    of that layer]. With ``copy`` [A, 1] a token is written only with the probability sigmoid(that · copy), else it is
    the source's token at one of its places, drawn by their weights (See et al. 2017, "pointer-generator").
    """

    context: Array
    hidden: Array
    bias: Array
    key: Array | None = None
    query: Dense | None = None
    score: Array | None = None
    feed: Array | None = None
    copy: Dense | None = None

    @property
    def units(self) -> int:
        return len(self.bias)


@dataclass(frozen=True)
class Weights:
    """A whole model in Keras' shapes, float32: ``embedding`` [V, E], LSTM layers, ``output`` [H, V] (None: tied, the
    transposed embedding) and ``output_bias`` [V]. A sequence-to-sequence model has an encoder and, or None, attention.
    """

    embedding: Array
    layers: tuple[LSTMWeights, ...]
    output: Array | None
    output_bias: Array
    encoder: Encoder | None = None
    attention: Attention | None = None

    @property
    def task(self) -> str:
        return "lm" if self.encoder is None else "seq2seq"

    @property
    def top(self) -> int:
        """Values that the output layer reads."""
        return self.layers[-1].units if self.attention is None else self.attention.units

    @classmethod
    def from_dict(cls, arrays: Mapping[str, Any]) -> Weights:
        """From arrays by name: ``embedding``, ``lstm.N.kernel``, ``lstm.N.recurrent_kernel``, ``lstm.N.bias``
        (N from 0), ``output.kernel``, ``output.bias``. Without biases they are zero; without ``output.kernel``
        the output is tied to the embedding.

        Of a sequence-to-sequence model (`Encoder`, `Bridge`, `Attention` say what they are) also ``source.embedding``
        (without it the decoder's), ``encoder.N.*`` and ``encoder.N.reverse.*`` as ``lstm.N.*``, ``bridge.N.h.kernel``,
        ``bridge.N.h.bias``, ``bridge.N.c.kernel``, ``bridge.N.c.bias`` (N: the decoder's layer), ``attention.context``,
        ``.hidden``, ``.bias``, ``.key``, ``.query.kernel``, ``.query.bias``, ``.score``, ``.feed``, ``.copy.kernel``,
        ``.copy.bias``.

        Raises
        ------
        ValueError
            Naming the array that is missing, unknown, misshapen, or not finite.
        """
        left = dict(arrays)
        embedding = _take(left, "embedding", (None, None))
        layers: list[LSTMWeights] = []
        inputs = embedding.shape[1]
        while _has(left, name := f"lstm.{len(layers)}"):
            layers.append(_take_lstm(left, name, inputs))
            inputs = layers[-1].units
        if not layers:
            raise ValueError("expected at least one LSTM layer: 'lstm.0.kernel', 'lstm.0.recurrent_kernel'")
        encoder = _take_encoder(left, embedding.shape[1], layers) if _has(left, "encoder.0") else None
        attention = None
        if encoder is not None and _has(left, "attention"):
            attention = _take_attention(left, encoder.widths[-1], inputs, layers[0].units)
            own = encoder.embedding
            if attention.copy is not None and own is not None and len(own) > len(embedding):
                raise ValueError(
                    f"attention.copy: a source's tokens are copied, but there are {len(own)}, and of texts only "
                    f"{len(embedding)}"
                )
            inputs = attention.units
        tied = "output.kernel" not in left
        if tied and embedding.shape[1] != inputs:
            raise ValueError(
                f"no 'output.kernel', and the embedding of size {embedding.shape[1]} cannot be tied to the output of "
                f"the last layer, which has {inputs} units"
            )
        output = None if tied else _take(left, "output.kernel", (inputs, embedding.shape[0]))
        output_bias = _take(left, "output.bias", (embedding.shape[0],), optional=True)
        if left:
            known = "embedding, lstm.N.*, output.*"
            more = "; of two sequences also source.embedding, encoder.N.*, bridge.N.*, attention.*"
            raise ValueError(f"unknown array {next(iter(left))!r}: expected {known}{more}")
        return cls(embedding, tuple(layers), output, output_bias, encoder, attention)

    def to_dict(self) -> dict[str, Array]:
        """The inverse of `from_dict`."""
        found: dict[str, Array | None] = {"embedding": self.embedding}
        for n, layer in enumerate(self.layers):
            found |= _lstm_arrays(f"lstm.{n}", layer)
        if self.encoder is not None:
            found |= _encoder_arrays(self.encoder)
        if self.attention is not None:
            a = self.attention
            found |= {
                f"attention.{name}": getattr(a, name) for name in ("key", "score", "context", "hidden", "bias", "feed")
            }
            if a.query is not None:
                found |= _dense_arrays("attention.query", a.query)
            if a.copy is not None:
                found |= _dense_arrays("attention.copy", a.copy)
        found |= {"output.kernel": self.output, "output.bias": self.output_bias}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(array.size for array in self.to_dict().values())


POOLINGS = ("last", "mean", "max", "attention", "concat")


@dataclass(frozen=True)
class Pooling:
    """How the outputs of D values at all places of a text become one: the ``last`` of each direction, their ``mean``,
    the ``max`` of each value, ``attention``: their mean with weights that are the softmax of ``score`` [A] ·
    tanh(output · ``key`` [D, A]) (Yang et al. 2016), or ``concat``: last, max and mean side by side (Howard & Ruder
    2018)."""

    kind: str
    key: Dense | None = None
    score: Array | None = None

    def outputs(self, width: int) -> int:
        """Values that come out."""
        return 3 * width if self.kind == "concat" else width


@dataclass(frozen=True)
class ClassifierWeights:
    """A whole classifier in Keras' shapes, float32: ``embedding`` [V, E], LSTM layers, and ``output`` [pooled values,
    labels], whose softmax are the labels' probabilities."""

    embedding: Array
    layers: Stack
    pooling: Pooling
    output: Dense

    task = "classifier"

    @classmethod
    def from_dict(cls, arrays: Mapping[str, Any], pooling: str = "last") -> ClassifierWeights:
        """From arrays by name: ``embedding``, ``lstm.N.kernel``, ``lstm.N.recurrent_kernel``, ``lstm.N.bias``, the same
        of ``lstm.N.reverse`` for a layer that reads in both directions, ``output.kernel``, ``output.bias``; with
        attention ``pooling.key.kernel``, ``pooling.key.bias`` and ``pooling.score``. Without biases they are zero.

        Raises
        ------
        ValueError
            Naming the array that is missing, unknown, misshapen, or not finite, or if there is no such pooling.
        """
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r}: expected {', '.join(POOLINGS)}")
        left = dict(arrays)
        embedding = _take(left, "embedding", (None, None))
        layers = _take_stack(left, "lstm", embedding.shape[1])
        width = widths(layers)[-1]
        pool = Pooling(pooling)
        if pooling == "attention":
            score = _take(left, "pooling.score", (None,))
            pool = Pooling(pooling, _take_dense(left, "pooling.key", width, len(score)), score)
        kernel = _take(left, "output.kernel", (pool.outputs(width), None))
        output = Dense(kernel, _take(left, "output.bias", (kernel.shape[1],), optional=True))
        if left:
            known = "embedding, lstm.N.*, lstm.N.reverse.*, output.*, and for attention pooling.*"
            raise ValueError(f"unknown array {next(iter(left))!r}: expected {known}")
        return cls(embedding, layers, pool, output)

    def to_dict(self) -> dict[str, Array]:
        """The inverse of `from_dict`."""
        found = {"embedding": self.embedding, **_stack_arrays("lstm", self.layers)}
        if self.pooling.key is not None and self.pooling.score is not None:
            found |= _dense_arrays("pooling.key", self.pooling.key) | {"pooling.score": self.pooling.score}
        return found | _dense_arrays("output", self.output)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(array.size for array in self.to_dict().values())


def _has(left: Mapping[str, Any], name: str) -> bool:
    return any(key.startswith(name + ".") for key in left)


def _take_lstm(left: dict[str, Any], name: str, inputs: int) -> LSTMWeights:
    recurrent = _take(left, f"{name}.recurrent_kernel", (None, None))
    units = recurrent.shape[0]
    _expect_shape(f"{name}.recurrent_kernel", recurrent, (units, 4 * units))
    kernel = _take(left, f"{name}.kernel", (inputs, 4 * units))
    return LSTMWeights(kernel, recurrent, _take(left, f"{name}.bias", (4 * units,), optional=True))


def _take_dense(left: dict[str, Any], name: str, inputs: int, outputs: int) -> Dense:
    kernel = _take(left, f"{name}.kernel", (inputs, outputs))
    return Dense(kernel, _take(left, f"{name}.bias", (outputs,), optional=True))


def _take_stack(left: dict[str, Any], prefix: str, inputs: int) -> Stack:
    layers: list[tuple[LSTMWeights, LSTMWeights | None]] = []
    while _has(left, name := f"{prefix}.{len(layers)}"):
        reverse = _take_lstm(left, f"{name}.reverse", inputs) if _has(left, f"{name}.reverse") else None
        layers.append((_take_lstm(left, name, inputs), reverse))
        if reverse is not None and reverse.units != layers[-1][0].units:
            raise ValueError(f"{name}: its two directions have {layers[-1][0].units} and {reverse.units} units")
        inputs = widths(tuple(layers))[-1]
    if not layers:
        raise ValueError(f"expected at least one LSTM layer: '{prefix}.0.kernel', '{prefix}.0.recurrent_kernel'")
    return tuple(layers)


def _take_encoder(left: dict[str, Any], embedding_size: int, decoder: Sequence[LSTMWeights]) -> Encoder:
    embedding = _take(left, "source.embedding", (None, None)) if "source.embedding" in left else None
    inputs = embedding_size if embedding is None else embedding.shape[1]
    layers = _take_stack(left, "encoder", inputs)
    encoder = Encoder(embedding, layers, ())
    bridges: list[Bridge | None] = []
    for n, layer in enumerate(decoder):
        width = encoder.widths[min(n, len(layers) - 1)]
        name = f"bridge.{n}"
        if _has(left, name):
            parts = (_take_dense(left, f"{name}.{part}", 2 * width, layer.units) for part in "hc")
            bridges.append(Bridge(*parts))
        elif width != layer.units:
            raise ValueError(
                f"no '{name}.h.kernel', and the encoder's state of {width} values cannot be the first one of "
                f"'lstm.{n}', which has {layer.units} units"
            )
        else:
            bridges.append(None)
    return replace(encoder, bridges=tuple(bridges))


def _take_attention(left: dict[str, Any], width: int, hidden: int, first: int) -> Attention:
    name = "attention"
    context = _take(left, f"{name}.context", (width, None))
    units = context.shape[1]
    additive = _has(left, f"{name}.query")
    if not additive and f"{name}.key" not in left and width != hidden:
        raise ValueError(
            f"no '{name}.key', and encoder outputs of {width} values cannot be multiplied with {hidden} hidden values"
        )
    keyed = additive or f"{name}.key" in left
    return Attention(
        context,
        _take(left, f"{name}.hidden", (hidden, units)),
        _take(left, f"{name}.bias", (units,), optional=True),
        key=_take(left, f"{name}.key", (width, units if additive else hidden)) if keyed else None,
        query=_take_dense(left, f"{name}.query", hidden, units) if additive else None,
        score=_take(left, f"{name}.score", (units,)) if additive else None,
        feed=_take(left, f"{name}.feed", (units, 4 * first)) if f"{name}.feed" in left else None,
        copy=_take_dense(left, f"{name}.copy", units, 1) if _has(left, f"{name}.copy") else None,
    )


def _lstm_arrays(name: str, layer: LSTMWeights) -> dict[str, Array]:
    return {f"{name}.kernel": layer.kernel, f"{name}.recurrent_kernel": layer.recurrent, f"{name}.bias": layer.bias}


def _dense_arrays(name: str, dense: Dense) -> dict[str, Array]:
    return {f"{name}.kernel": dense.kernel, f"{name}.bias": dense.bias}


def _stack_arrays(prefix: str, stack: Stack) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for n, pair in enumerate(stack):
        for name, way in zip((f"{prefix}.{n}", f"{prefix}.{n}.reverse"), pair, strict=True):
            found |= {} if way is None else _lstm_arrays(name, way)
    return found


def _encoder_arrays(encoder: Encoder) -> dict[str, Array | None]:
    found: dict[str, Array | None] = {"source.embedding": encoder.embedding, **_stack_arrays("encoder", encoder.layers)}
    for n, bridge in enumerate(encoder.bridges):
        if bridge is not None:
            found |= _dense_arrays(f"bridge.{n}.h", bridge.h) | _dense_arrays(f"bridge.{n}.c", bridge.c)
    return found


def _take(left: dict[str, Any], name: str, shape: tuple[int | None, ...], optional: bool = False) -> Array:
    if name not in left or (optional and left[name] is None):
        left.pop(name, None)
        if optional:
            return np.zeros([n or 0 for n in shape], np.float32)
        raise ValueError(f"array {name!r} is missing")
    try:
        array = np.ascontiguousarray(left.pop(name), np.float32)
    except (TypeError, ValueError) as e:
        raise ValueError(f"{name}: expected an array of numbers: {e}") from None
    _expect_shape(name, array, shape)
    if not (np.abs(array) <= LARGEST_WEIGHT).all():
        raise ValueError(f"{name}: a weight is not a number, infinite or above 2^40")
    return array


def _expect_shape(name: str, array: Array, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape:
        wanted = " x ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape {wanted}, found {' x '.join(map(str, array.shape))}")
