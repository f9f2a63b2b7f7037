# SPDX-License-Identifier: Apache-2.0
"""fastlm.export: a Keras model, or arrays, to a model file, with proof that the engine computes the same."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm import _engine, format, tokenizer
from fastlm.format import Weights
from fastlm.options import GenerationOptions

TEST_TOKENS = 64
"""Length of the test vector that travels with a model."""

TOLERANCE = 1e-4
"""Largest difference of a log-probability that is still rounding; more means another computation."""

_SKIPPED = {"InputLayer", "Dropout", "SpatialDropout1D", "GaussianDropout", "GaussianNoise", "ActivityRegularization"}
_METADATA = ("name", "description", "license", "author", "version", "url")

# From tokens [T] to log-probabilities [T, V]; row t is for the token that follows tokens[: t + 1].
LogProbs = Callable[[npt.NDArray[np.int32]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class ExportReport:
    """What was written. ``max_error`` is the largest difference of a log-probability between the source and the
    engine on the test sequence; ``bytes`` is the file's size."""

    path: str
    bytes: int
    parameters: int
    dtype: str
    max_error: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes / 1e6:.2f} MB, {self.parameters:,} parameters in {self.dtype}; "
            f"log-probabilities differ from the source by at most {self.max_error:.1e}"
        )


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    dtype: str = "f32",
    bos: int | None = None,
    eos: int | None = None,
    sampling: Mapping[str, float] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Writes a language model to a file that `fastlm.load` runs.

    Parameters
    ----------
    model : Keras model, path of a ``.keras`` file, or dict of arrays
        Embedding, then one or more LSTM layers, then Dense (linear or softmax). Sequential, functional, or
        subclassed (its layers are taken in the order in which they were declared). Dropout and noise layers do
        nothing when a model runs and are left out. Arrays: see `fastlm.format.Weights.from_dict`.
    path : path
        Written under a temporary name and moved into place when complete and checked.
    tokenizer : optional
        A fastlm tokenizer, a ``tokenizers.Tokenizer`` or the path of its JSON, or ``"bytes"``. None: the model is
        used with token ids only.
    dtype : str
        Of the weights: ``"f32"``.
    bos, eos : int, optional
        Tokens that start and end a text, if the tokenizer does not name them.
    sampling : mapping, optional
        Recommended temperature, top_k, top_p: the defaults of `generate` for this model.
    metadata : mapping, optional
        name, description, license, author, version, url.

    Returns
    -------
    ExportReport

    Raises
    ------
    ValueError
        Naming the layer, if the model computes something that the engine does not, or the argument that is wrong.
    OSError
        The file cannot be written; nothing is left behind.
    """
    if dtype != "f32":
        raise ValueError(f"dtype={dtype!r}: expected 'f32'")
    weights, logprobs = _read(model)
    vocab_size = len(weights.embedding)
    known = _tokenizer(tokenizer, vocab_size)
    fields = _fields(known, bos, eos, sampling, metadata, vocab_size)
    tokens = _test_tokens(vocab_size, fields.get("tokenizer.ggml.bos_token_id"))
    expected = _chosen(logprobs(tokens[:-1]), tokens[1:])
    fields["lstm.test.tolerance"] = TOLERANCE
    with format.atomic(path) as temporary:
        # The first token comes from a fresh network, which frameworks do not show: its place is the engine's own.
        format.write(temporary, weights, fields)
        found = _engine_logprobs(temporary, tokens)
        error = float(np.abs(found[1:] - expected).max())
        if not error <= TOLERANCE:
            raise ValueError(
                f"the engine's log-probabilities differ from the model's by {error:.3g} (at most {TOLERANCE:g} is "
                "rounding): the model does more than its Embedding, LSTM and Dense layers in turn"
            )
        fields["lstm.test.tokens"] = tokens
        fields["lstm.test.logprobs"] = np.concatenate([found[:1], expected]).astype(np.float32)
        format.write(temporary, weights, fields)
        _engine_logprobs(temporary, tokens[:1])
        size = os.path.getsize(temporary)
    return ExportReport(os.fspath(path), size, weights.parameters, dtype, error)


# ---- what goes into the file ---------------------------------------------------------------------------


def _tokenizer(given: Any, vocab_size: int) -> tokenizer.Tokenizer | None:
    known: tokenizer.Tokenizer | None
    if given is None or isinstance(given, tokenizer.Tokenizer):
        known = given
    elif given == "bytes":
        known = tokenizer.ByteTokenizer()
    elif hasattr(given, "to_str"):
        known = tokenizer.HuggingFaceTokenizer(given.to_str())
    elif isinstance(given, (str, os.PathLike)):
        with open(given, encoding="utf-8") as file:
            known = tokenizer.HuggingFaceTokenizer(file.read())
    else:
        raise TypeError(
            f"tokenizer: expected a fastlm or Hugging Face tokenizer, its JSON file, 'bytes' or None, "
            f"found {type(given).__name__}"
        )
    if known is not None and known.vocab_size > vocab_size:
        raise ValueError(f"the tokenizer has {known.vocab_size} tokens, but the model predicts only {vocab_size}")
    return known


def _fields(
    known: tokenizer.Tokenizer | None,
    bos: int | None,
    eos: int | None,
    sampling: Mapping[str, float] | None,
    metadata: Mapping[str, str] | None,
    vocab_size: int,
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in (metadata or {}).items():
        if key not in _METADATA or not isinstance(value, str):
            raise ValueError(f"metadata {key!r}: expected a text for one of {', '.join(_METADATA)}")
        fields[f"general.{key}"] = value
    keys = {"temperature": ("temp", float), "top_k": ("top_k", int), "top_p": ("top_p", float)}
    for key, number in (sampling or {}).items():
        if key not in keys:
            raise ValueError(f"sampling {key!r}: expected one of {', '.join(keys)}")
        GenerationOptions.of({key: number})
        name, kind = keys[key]
        fields[f"general.sampling.{name}"] = kind(number)
    if known is not None:
        fields.update(known.fields())
    for key, token in (("bos", bos), ("eos", eos)):
        if token is None:
            continue
        if not 0 <= token < vocab_size:
            raise ValueError(f"{key}={token}: expected a token from 0 to {vocab_size - 1}")
        fields[f"tokenizer.ggml.{key}_token_id"] = int(token)
    return fields


def _test_tokens(vocab_size: int, bos: int | None) -> npt.NDArray[np.int32]:
    tokens = np.random.default_rng(0).integers(0, vocab_size, TEST_TOKENS, np.int32)
    tokens[0] = tokens[0] if bos is None else bos
    return tokens


def _chosen(logprobs: npt.NDArray[np.float64], tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    return np.asarray(logprobs[np.arange(len(tokens)), tokens])


def _engine_logprobs(path: str, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    session = _engine.Session(_engine.Model(path, None, None, 0))
    return np.array(session.score(array("i", tokens)), np.float64)


# ---- sources -------------------------------------------------------------------------------------------


def _read(model: Any) -> tuple[Weights, LogProbs]:
    if isinstance(model, Mapping):
        weights = Weights.from_dict(model)
        return weights, lambda tokens: log_softmax(reference_logits(weights, tokens))
    if isinstance(model, (str, os.PathLike)):
        model = _load_keras(os.fspath(model))
    weights, softmax = _from_keras(model)
    return weights, lambda tokens: _keras_logprobs(model, tokens, softmax)


def _load_keras(path: str) -> Any:
    if not path.endswith(".keras"):
        raise ValueError(f"{path}: expected a .keras file (model.save('name.keras'))")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    from fastlm.training.network import load_keras_model

    return load_keras_model(path)


def _from_keras(model: Any) -> tuple[Weights, bool]:
    """The weights, and whether the model ends in a softmax."""
    layers = [_unwrapped(layer) for layer in getattr(model, "layers", []) if type(layer).__name__ not in _SKIPPED]
    softmax = False
    while len(layers) > 1 and type(layers[-1]).__name__ in ("Activation", "Softmax"):
        last = layers.pop()
        softmax = True
        if type(last).__name__ == "Activation":
            _expect_config(last, "activation", ("softmax",))
    if len(layers) < 3:
        raise ValueError(f"expected Embedding, LSTM and Dense layers, found {len(layers)} layers in the model")
    embedding, cells, dense = layers[0], layers[1:-1], layers[-1]
    _expect_kind(embedding, ("Embedding",))
    arrays: dict[str, Any] = {"embedding": _weights(embedding)[0]}
    if getattr(embedding, "mask_zero", False):
        raise ValueError(f"layer {embedding.name!r}: mask_zero=True skips tokens, which the engine does not do")
    for n, cell in enumerate(cells):
        _check_lstm(cell)
        names = ("kernel", "recurrent_kernel", "bias")
        arrays.update({f"lstm.{n}.{name}": array for name, array in zip(names, _weights(cell), strict=False)})
    _expect_kind(dense, ("Dense", "TiedDense"))
    if type(dense).__name__ == "TiedDense":
        if dense.embedding is not embedding:
            raise ValueError(f"layer {dense.name!r}: expected to be tied to {embedding.name!r}")
        if dense.bias is not None:
            arrays["output.bias"] = np.asarray(dense.bias)
    else:
        softmax = softmax or _expect_config(dense, "activation", ("linear", "softmax")) == "softmax"
        arrays.update(zip(("output.kernel", "output.bias"), _weights(dense), strict=False))
    return Weights.from_dict(arrays), softmax


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


def _check_lstm(layer: Any) -> None:
    _expect_kind(layer, ("LSTM",))
    _expect_config(layer, "activation", ("tanh",))
    _expect_config(layer, "recurrent_activation", ("sigmoid",))
    _expect_config(layer, "go_backwards", (False,))


def _keras_logprobs(model: Any, tokens: npt.NDArray[np.int32], softmax: bool) -> npt.NDArray[np.float64]:
    """[T, V]; a model that predicts only after its last token is called once for every length."""
    whole = _keras_output(model, tokens)
    if whole.ndim == 1:
        whole = np.stack([_keras_output(model, tokens[: t + 1]) for t in range(len(tokens))])
    if not softmax:
        return log_softmax(whole)
    return np.asarray(np.log(np.maximum(whole, np.finfo(np.float32).tiny)))


def _keras_output(model: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_states()
    output = model(tokens[None], training=False)
    if isinstance(output, (list, tuple)):
        output = output[0]
    logits: npt.NDArray[np.float64] = np.asarray(output, np.float64)[0]
    return logits


# ---- the same in float64 -------------------------------------------------------------------------------


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def reference_logits(weights: Weights, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Logits [T, V] in float64 after each token, from a fresh network: what arrays are checked against."""
    x = weights.embedding[tokens].astype(np.float64)
    for layer in weights.layers:
        kernel, recurrent, bias = (a.astype(np.float64) for a in (layer.kernel, layer.recurrent, layer.bias))
        h = c = np.zeros(layer.units)
        out = []
        for z in x @ kernel + bias:
            i, f, g, o = np.split(z + h @ recurrent, 4)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            out.append(h)
        x = np.stack(out)
    output = weights.embedding.T if weights.output is None else weights.output
    return np.asarray(x @ output.astype(np.float64) + weights.output_bias)


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2))
