# SPDX-License-Identifier: Apache-2.0
"""What a Keras model computes, as arrays: the layers that the engine knows, in the order in which they feed each other,
and what the model itself says, to compare with. Nothing here imports Keras, but to open a file."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm import float64
from fastlm.weights import ClassifierWeights, Weights

_SKIPPED = {
    "ActivityRegularization",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "InputLayer",
    "SpatialDropout1D",
}


def load(path: str) -> Any:
    if not path.endswith(".keras"):
        raise ValueError(f"{path}: expected a .keras file (model.save('name.keras'))")
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a .keras file, which model.save('name.keras') writes")
    from fastlm.training.network import load_keras_model

    return load_keras_model(path)


def _layers(model: Any) -> list[Any]:
    """That compute something, a softmax behind the last one left out."""
    layers = [_unwrapped(layer) for layer in getattr(model, "layers", [])]
    layers = [layer for layer in layers if type(layer).__name__ not in _SKIPPED]
    while len(layers) > 1 and type(layers[-1]).__name__ in ("Activation", "Softmax"):
        last = layers.pop()
        if type(last).__name__ == "Activation":
            _expect_config(last, "activation", ("linear", "softmax"))
    if len(layers) < 3:
        raise ValueError(f"expected Embedding, LSTM and Dense layers, found {len(layers)} layers in the model")
    for layer in layers:
        if getattr(layer, "compute_dtype", "float32") != "float32":
            raise ValueError(f"layer {layer.name!r} computes in {layer.compute_dtype}: expected float32")
    return layers


def language_model(model: Any) -> Weights:
    embedding, *cells, dense = _layers(model)
    arrays = _from_embedding(embedding)
    for n, cell in enumerate(cells):
        arrays.update(_from_lstm(f"lstm.{n}", cell))
    arrays.update(_from_dense(dense, embedding))
    return Weights.from_dict(arrays)


def seq2seq(model: Any) -> tuple[Weights, Callable[..., npt.NDArray[np.float64]]]:
    """Of a functional model of two inputs: an Embedding and LSTM layers that read a source, and for the text an
    Embedding, LSTM layers that begin with the states of the former (``initial_state``), and Dense. Also its
    log-probabilities [T, V] after each token of a text, given it and its source."""
    layers = _layers(model)
    decoder = [layer for layer in layers if type(layer).__name__ == "LSTM" and len(_inputs(layer)) > 1]
    encoder = [layer for layer in layers if _is_cell(layer) and layer not in decoder]
    if not decoder or not encoder:
        raise ValueError(
            "a model of two inputs: expected LSTM layers that read the source, and others that begin with their states "
            "(initial_state)"
        )
    dense, embedding, source = layers[-1], _below(decoder[0], "Embedding"), _below(encoder[0], "Embedding")
    known = [*encoder, *decoder, dense, embedding, source]
    for layer in layers:
        if layer not in known and type(layer).__name__ != "Concatenate":
            raise ValueError(
                f"layer {layer.name!r} is a {type(layer).__name__}: a model of two inputs has Embedding, LSTM and "
                "Dense layers; of one with attention give the arrays"
            )
    arrays = _from_embedding(embedding)
    if source is not embedding:
        arrays["source.embedding"] = _from_embedding(source)["embedding"]
    for n, cell in enumerate(encoder):
        arrays.update(_from_direction(f"encoder.{n}", cell))
    for n, cell in enumerate(decoder):
        arrays.update(_from_lstm(f"lstm.{n}", cell))
    arrays.update(_from_dense(dense, embedding))
    first = _below(encoder[0], "InputLayer") is model.inputs[0]._keras_history.operation

    def logprobs(tokens: npt.NDArray[np.int32], given: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        both = [given[None], tokens[None]] if first else [tokens[None], given[None]]
        with _logits(model) as are_logits:
            return _as_logprobs(np.asarray(model(both, training=False), np.float64)[0], are_logits)

    return Weights.from_dict(arrays), logprobs


def _is_cell(layer: Any) -> bool:
    return type(layer).__name__ in ("LSTM", "Bidirectional")


def _inputs(layer: Any) -> list[Any]:
    """The tensors that a layer of a functional model reads, its own input first."""
    found: list[Any] = layer._inbound_nodes[0].input_tensors
    return found


def _below(layer: Any, kind: str) -> Any:
    """The nearest layer of a kind under another's own input; None: there is none. (A layer may be used twice, so this
    follows tensors.)"""
    inputs = _inputs(layer)
    while inputs:
        found, node, _ = inputs[0]._keras_history
        if type(found).__name__ == kind:
            return found
        inputs = found._inbound_nodes[node].input_tensors
    return None


_POOLS = {"GlobalAveragePooling1D": "mean", "GlobalMaxPooling1D": "max"}


def classifier(model: Any) -> ClassifierWeights:
    embedding, *cells, dense = _layers(model)
    pooling = _POOLS.get(type(cells[-1]).__name__, "last")
    if pooling != "last":
        cells.pop()
    arrays = _from_embedding(embedding)
    for n, cell in enumerate(cells):
        _expect_config(
            getattr(cell, "forward_layer", cell), "return_sequences", (pooling != "last" or cell is not cells[-1],)
        )
        arrays.update(_from_direction(f"lstm.{n}", cell))
    _expect_kind(dense, ("Dense",))
    kernel, *bias = _weights(dense)
    one = kernel.shape[1] == 1
    _expect_config(dense, "activation", ("sigmoid", "linear") if one else ("softmax", "linear"))
    parts = [kernel, *bias]
    if one:  # the log-odds of the second label
        parts = [np.concatenate([np.zeros_like(part), part], -1) for part in parts]
    arrays.update(zip(("output.kernel", "output.bias"), parts, strict=False))
    return ClassifierWeights.from_dict(arrays, pooling)


def _from_direction(name: str, layer: Any) -> dict[str, Any]:
    """An LSTM layer, or two that read a text in both directions."""
    if type(layer).__name__ != "Bidirectional":
        return _from_lstm(name, layer)
    _expect_config(layer, "merge_mode", ("concat",))
    arrays = _from_lstm(name, layer.forward_layer)
    return arrays | _from_lstm(f"{name}.reverse", layer.backward_layer, backwards=True)


def _from_lstm(name: str, layer: Any, backwards: bool = False) -> dict[str, Any]:
    _check_lstm(layer, backwards)
    names = ("kernel", "recurrent_kernel", "bias")
    return {f"{name}.{part}": array for part, array in zip(names, _weights(layer), strict=False)}


def _from_embedding(layer: Any) -> dict[str, Any]:
    _expect_kind(layer, ("Embedding",))
    if getattr(layer, "mask_zero", False):
        raise ValueError(
            f"layer {layer.name!r}: mask_zero=True skips token 0, and the engine reads every token that it is given: "
            "build the layer with mask_zero=False, set the trained weights, and give texts without padding"
        )
    return {"embedding": _weights(layer)[0]}


def _from_dense(layer: Any, embedding: Any) -> dict[str, Any]:
    _expect_kind(layer, ("Dense", "TiedDense"))
    if type(layer).__name__ == "TiedDense":
        if layer.embedding is not embedding:
            raise ValueError(f"layer {layer.name!r}: expected to be tied to {embedding.name!r}")
        return {"output.bias": np.asarray(layer.bias)}
    _expect_config(layer, "activation", ("linear", "softmax"))
    weights = _weights(layer)
    vocab_size, predicted = len(_weights(embedding)[0]), weights[0].shape[-1]
    if predicted != vocab_size:
        raise ValueError(
            f"layer {layer.name!r} predicts {predicted} tokens, but layer {embedding.name!r} reads {vocab_size}; of a "
            "classifier give the labels, too"
        )
    return dict(zip(("output.kernel", "output.bias"), weights, strict=False))


def _unwrapped(layer: Any) -> Any:
    return layer.layer if type(layer).__name__ == "TimeDistributed" else layer


def _weights(layer: Any) -> list[Any]:
    found: list[Any] = layer.get_weights()
    if not found:
        raise ValueError(f"layer {layer.name!r} has no weights yet: call the model once, or build it")
    return found


def _expect_kind(layer: Any, kinds: tuple[str, ...]) -> None:
    found = type(layer).__name__
    if found not in kinds:
        raise ValueError(f"layer {layer.name!r} is a {found}: expected {' or '.join(kinds)} here")


def _expect_config(layer: Any, key: str, allowed: tuple[Any, ...]) -> Any:
    value = layer.get_config().get(key)
    if isinstance(value, dict):  # a serialised activation object
        value = value.get("config") if isinstance(value.get("config"), str) else value.get("class_name")
    if value not in allowed:
        wanted = " or ".join(map(repr, allowed))
        raise ValueError(f"layer {layer.name!r}: {key}={value!r}, but the engine computes only {wanted}")
    return value


def _check_lstm(layer: Any, backwards: bool) -> None:
    _expect_kind(layer, ("LSTM",))
    _expect_config(layer, "activation", ("tanh",))
    _expect_config(layer, "recurrent_activation", ("sigmoid",))
    _expect_config(layer, "go_backwards", (backwards,))


def label_logprobs(model: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    batch, length = _insisted_shape(model, tokens)
    if length is not None:
        raise ValueError(
            f"the model reads exactly {length} tokens, so texts of other lengths cannot be compared: build it with "
            "keras.Input((None,)) and set the trained weights"
        )
    with _logits(model) as are_logits:
        found = _output(model, tokens, batch)
    if found.shape == (1,):  # the log-odds of the second label
        return float64.log_softmax(np.array([0, found[0]], np.float64))
    return _as_logprobs(found, are_logits)


@contextmanager
def _logits(model: Any) -> Iterator[bool]:
    """Meanwhile the model gives logits: a probability near 1, in 32 bits, does not say how near. Yields whether it
    does for certain: not if it has a Softmax layer, or code of its own."""
    layers = [_unwrapped(layer) for layer in model.layers if type(layer).__name__ not in _SKIPPED]
    before, certain = [], type(model).__name__ in ("Sequential", "Functional")
    for layer in reversed(layers):
        certain &= type(layer).__name__ != "Softmax"
        if hasattr(layer, "activation"):
            before.append((layer, layer.activation))
            layer.activation = _as_it_is
        if type(layer).__name__ not in ("Activation", "Softmax"):
            break
    try:
        yield certain
    finally:
        for layer, activation in before:
            layer.activation = activation


def _as_it_is(x: Any) -> Any:
    return x


def logprobs(model: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """[T, V], or fewer rows if the model reads no more tokens at once. A model that predicts only after its last
    token is called once for every length."""
    with _logits(model) as are_logits:
        return _as_logprobs(_all_rows(model, tokens), are_logits)


def _all_rows(model: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    batch, length = _insisted_shape(model, tokens)
    if length is None:
        whole = _output(model, tokens, batch)
        if whole.ndim == 1:
            whole = np.stack([_output(model, tokens[: t + 1], batch) for t in range(len(tokens))])
    else:
        tokens = tokens[:length]
        # Filled up at the end, where a row before it cannot look.
        whole = _output(model, np.resize(tokens, length), batch)
        if whole.ndim == 1:
            raise ValueError(
                f"the model predicts only after exactly {length} tokens, so it cannot be compared step by step: "
                "build it with keras.Input((None,)) and set the trained weights"
            )
        whole = whole[: len(tokens)]
    return whole


def _as_logprobs(found: npt.NDArray[np.float64], are_logits: bool) -> npt.NDArray[np.float64]:
    if not are_logits and (found >= 0).all() and np.allclose(found.sum(-1), 1, atol=1e-4):
        return np.asarray(np.log(np.maximum(found, np.finfo(np.float32).tiny)))
    return float64.log_softmax(found)


def _insisted_shape(model: Any, tokens: npt.NDArray[np.int32]) -> tuple[int | None, int | None]:
    """Batch size and length that a model insists on; (None, None) if it takes any."""
    try:
        _output(model, tokens, None)
    except Exception:  # Keras and its backends raise what they like
        shape = getattr(model, "input_shape", None)
        if isinstance(shape, (tuple, list)) and len(shape) == 2:
            return shape[0], shape[1]
    return None, None


def _output(model: Any, tokens: npt.NDArray[np.int32], batch: int | None) -> npt.NDArray[np.float64]:
    """What a Keras model says after ``tokens`` from its first state; the states of stateful layers are put back."""
    states = [variable for layer in model.layers for variable in getattr(layer, "states", None) or []]
    before = [np.array(variable) for variable in states]
    for variable in states:
        variable.assign(np.zeros(variable.shape, np.float32))
    output = model(np.tile(tokens, (batch or 1, 1)), training=False)
    for variable, value in zip(states, before, strict=True):
        variable.assign(value)
    if isinstance(output, (list, tuple)):
        output = output[0]
    logits: npt.NDArray[np.float64] = np.asarray(output, np.float64)[0]
    return logits
