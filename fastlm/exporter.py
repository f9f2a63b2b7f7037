# SPDX-License-Identifier: Apache-2.0
"""fastlm.export: a Keras model, or arrays, to a model file, with proof that the engine computes the same."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm import _engine, format
from fastlm.format import Attention, Encoder, LSTMWeights, Weights
from fastlm.options import GenerationOptions
from fastlm.quantizer import QuantizeReport, check_arguments, quantize
from fastlm.seq2seq import END_KEY, SOURCE
from fastlm.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, read_text

TEST_TOKENS = 64
"""Length of the test vector that travels with a model."""

TEST_SOURCE = 19
"""And of its source."""

TOLERANCE = 1e-4
"""Largest difference of a log-probability that is still rounding; more means another computation."""

_SKIPPED = {
    "ActivityRegularization",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "InputLayer",
    "SpatialDropout1D",
}
_METADATA = ("name", "description", "license", "author", "version", "url")

# From tokens [T], and their source, to log-probabilities [T, V]; row t is for the token that follows tokens[: t + 1].
LogProbs = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int32] | None], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class ExportReport:
    """What was written. ``max_error`` is the largest difference of a log-probability between the source and the
    engine on the test sequence; ``bytes`` is the file's size. ``rounding`` says what fewer bits cost, matrix by matrix
    and on the text; None if the file is in f32."""

    path: str
    bytes: int
    parameters: int
    dtype: str
    max_error: float
    rounding: QuantizeReport | None = None

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes / 1e6:.2f} MB, {self.parameters:,} parameters in {self.dtype}; "
            f"log-probabilities differ from the source by at most {self.max_error:.1e}"
            + (f"\n{self.rounding}" if self.rounding else "")
        )


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    source_tokenizer: Any = None,
    dtype: str | Mapping[str, str] = "f32",
    text: str | Sequence[int] | None = None,
    max_loss: float | None = None,
    screen: bool = False,
    progress: Callable[[str], None] | None = None,
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
    source_tokenizer : optional
        Of a sequence-to-sequence model, for sources, if they have another one. A source ends with its end of text, if
        it has one.
    dtype : str or mapping
        Of the weights: ``"f32"``, or what `fastlm.quantize` takes: ``"bf16"``, ``"int8"``, ``"int4"``, ``"auto"``, or
        by part. The model is written and checked in f32 first, then rounded.
    text, max_loss, screen, progress : optional
        As in `fastlm.quantize`: held-out text to measure what fewer bits cost, the limit of ``"auto"``, whether
        a large vocabulary gets a screen, and who is told what is being done.
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
    check_arguments(dtype, text, max_loss, screen, progress)
    if isinstance(text, str) and tokenizer is None:
        raise ValueError("a text needs the tokenizer that the model was trained with: give it too, or token ids")
    format.gguf_package()
    weights, logprobs = _read(model)
    vocab_size = len(weights.embedding)
    known = _tokenizer(tokenizer, vocab_size)
    fields = _fields(known, bos, eos, sampling, metadata, vocab_size)
    fields |= _source_fields(weights, known, source_tokenizer, fields)
    tokens, source = _test_tokens(vocab_size, fields), fields.get("lstm.test.source")
    rows = logprobs(tokens[:-1], source)
    tokens = tokens[: len(rows) + 1]
    fields["lstm.test.tokens"] = tokens
    fields["lstm.test.logprobs"] = rows[np.arange(len(rows)), tokens[1:]].astype(np.float32)
    fields["lstm.test.tolerance"] = TOLERANCE
    with format.atomic(path) as temporary:
        format.write(temporary, weights, fields)
        error, _ = _engine.Model(temporary, None, None, 0).verify()
        if not error <= TOLERANCE:
            raise ValueError(
                f"the engine's log-probabilities differ from the model's by {error:.3g} (up to {TOLERANCE:g} is "
                "rounding): the model does more than its Embedding, LSTM and Dense layers in turn, for instance masks "
                "tokens, adds layers up, or starts from a state of its own; or its weights are so large that float32 "
                "cannot tell its log-probabilities any better"
            )
        report = ExportReport(os.fspath(path), os.path.getsize(temporary), weights.parameters, "f32", error)
        if dtype != "f32" or text is not None or screen:
            rounding = quantize(
                temporary, temporary, dtype=dtype, text=text, max_loss=max_loss, screen=screen, progress=progress
            )
            report = _with_rounding(report, rounding)
    return report


def _with_rounding(report: ExportReport, rounding: QuantizeReport) -> ExportReport:
    error = rounding.max_error
    assert error is not None  # the file that was rounded has a test vector
    rounding = replace(rounding, path=report.path)
    return replace(report, bytes=rounding.bytes, dtype=rounding.dtype, max_error=error, rounding=rounding)


# ---- what goes into the file ---------------------------------------------------------------------------


def _tokenizer(given: Any, vocab_size: int) -> Tokenizer | None:
    known: Tokenizer | None
    if given is None or isinstance(given, Tokenizer):
        known = given
    elif isinstance(given, str) and given == "bytes":
        known = ByteTokenizer()
    elif hasattr(given, "to_str"):
        known = HuggingFaceTokenizer(given.to_str())
    elif isinstance(given, (str, os.PathLike)):
        known = HuggingFaceTokenizer(read_text(given))
    else:
        raise TypeError(
            f"tokenizer: expected a fastlm or Hugging Face tokenizer, its JSON file, 'bytes' or None, "
            f"found {type(given).__name__}"
        )
    if known is not None and known.vocab_size > vocab_size:
        raise ValueError(f"the tokenizer has {known.vocab_size} tokens, but the model predicts only {vocab_size}")
    return known


def _fields(
    known: Tokenizer | None,
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
        if key not in keys or number is None:
            raise ValueError(f"sampling {key!r}: expected a number for one of {', '.join(keys)}")
        GenerationOptions.of({key: number})
        name, kind = keys[key]
        fields[f"general.sampling.{name}"] = kind(number)
    if known is not None:
        fields.update(known.fields())
    for key, token in (("bos", bos), ("eos", eos)):
        if token is None:
            continue
        if not isinstance(token, (int, np.integer)) or not 0 <= token < vocab_size:
            raise ValueError(f"{key}={token!r}: expected a token id from 0 to {vocab_size - 1}")
        fields[f"tokenizer.ggml.{key}_token_id"] = int(token)
    return fields


def _source_fields(weights: Weights, known: Tokenizer | None, given: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of sources, and one for the test vector."""
    if weights.encoder is None:
        if given is not None:
            raise ValueError("source_tokenizer: a language model has no source")
        return {}
    if "tokenizer.ggml.bos_token_id" not in fields:
        raise ValueError("bos: expected the token that every text of a sequence-to-sequence model begins with")
    embedding = weights.embedding if weights.encoder.embedding is None else weights.encoder.embedding
    own = _tokenizer(given, len(embedding))
    found = {} if own is None else {f"{SOURCE}{key}": value for key, value in own.fields().items()}
    reads = known if own is None else own
    if own is None and known is not None and known.vocab_size > len(embedding):
        raise ValueError(f"the tokenizer has {known.vocab_size} tokens, but a source's embedding only {len(embedding)}")
    if reads is not None and reads.eos is not None:
        found[END_KEY] = reads.eos
    return {**found, "lstm.test.source": _test_tokens(len(embedding), {})[:TEST_SOURCE]}


def _test_tokens(vocab_size: int, fields: Mapping[str, Any]) -> npt.NDArray[np.int32]:
    """Random tokens, and among them, more than once, those that models are likely to treat in a way of their own."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, TEST_TOKENS, np.int32)
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id", 0) for name in ("bos", "eos", "unknown")]
    special = [0, 1 % vocab_size, vocab_size - 1, *ends]
    for n, token in enumerate([*special, *special, 0, 0]):
        tokens[5 * n % TEST_TOKENS] = token  # spread out: at the front, in the middle, at the end
    tokens[0] = ends[0]
    tokens[33] = tokens[32]
    return tokens


# ---- sources -------------------------------------------------------------------------------------------


def _read(model: Any) -> tuple[Weights, LogProbs]:
    if isinstance(model, Mapping):
        weights = Weights.from_dict(model)
        return weights, lambda tokens, source: log_softmax(reference_logits(weights, tokens, source))
    if isinstance(model, (str, os.PathLike)):
        model = _load_keras(os.fspath(model))
    return _from_keras(model), lambda tokens, _: _keras_logprobs(model, tokens)


def _load_keras(path: str) -> Any:
    if not path.endswith(".keras"):
        raise ValueError(f"{path}: expected a .keras file (model.save('name.keras'))")
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "no such file", path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a .keras file, which model.save('name.keras') writes")
    from fastlm.training.network import load_keras_model

    return load_keras_model(path)


def _from_keras(model: Any) -> Weights:
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
    embedding, cells, dense = layers[0], layers[1:-1], layers[-1]
    arrays = _from_embedding(embedding)
    for n, cell in enumerate(cells):
        _check_lstm(cell)
        names = ("kernel", "recurrent_kernel", "bias")
        arrays.update({f"lstm.{n}.{name}": array for name, array in zip(names, _weights(cell), strict=False)})
    arrays.update(_from_dense(dense, embedding))
    return Weights.from_dict(arrays)


def _from_embedding(layer: Any) -> dict[str, Any]:
    _expect_kind(layer, ("Embedding",))
    if getattr(layer, "mask_zero", False):
        raise ValueError(f"layer {layer.name!r}: mask_zero=True skips tokens, which the engine does not do")
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
            f"layer {layer.name!r} predicts {predicted} tokens, but layer {embedding.name!r} reads {vocab_size}"
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


def _check_lstm(layer: Any) -> None:
    _expect_kind(layer, ("LSTM",))
    _expect_config(layer, "activation", ("tanh",))
    _expect_config(layer, "recurrent_activation", ("sigmoid",))
    _expect_config(layer, "go_backwards", (False,))


def _keras_logprobs(model: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """[T, V], or fewer rows if the model reads no more tokens at once. A model that predicts only after its last
    token is called once for every length."""
    batch, length = _insisted_shape(model, tokens)
    if length is None:
        whole = _keras_output(model, tokens, batch)
        if whole.ndim == 1:
            whole = np.stack([_keras_output(model, tokens[: t + 1], batch) for t in range(len(tokens))])
    else:
        tokens = tokens[:length]
        # Filled up at the end, where a row before it cannot look.
        whole = _keras_output(model, np.resize(tokens, length), batch)
        if whole.ndim == 1:
            raise ValueError(
                f"the model predicts only after exactly {length} tokens, so it cannot be compared step by step: "
                "build it with keras.Input((None,)) and set the trained weights"
            )
        whole = whole[: len(tokens)]
    if (whole >= 0).all() and np.allclose(whole.sum(-1), 1, atol=1e-4):  # probabilities already
        return np.asarray(np.log(np.maximum(whole, np.finfo(np.float32).tiny)))
    return log_softmax(whole)


def _insisted_shape(model: Any, tokens: npt.NDArray[np.int32]) -> tuple[int | None, int | None]:
    """Batch size and length that a model insists on; (None, None) if it takes any."""
    try:
        _keras_output(model, tokens, None)
    except Exception:  # Keras and its backends raise what they like
        shape = getattr(model, "input_shape", None)
        if isinstance(shape, (tuple, list)) and len(shape) == 2:
            return shape[0], shape[1]
    return None, None


def _keras_output(model: Any, tokens: npt.NDArray[np.int32], batch: int | None) -> npt.NDArray[np.float64]:
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


# ---- the same in float64 -------------------------------------------------------------------------------


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


Float64 = npt.NDArray[Any]


def reference_logits(
    weights: Weights, tokens: npt.NDArray[np.int32], source: npt.NDArray[np.int32] | None = None
) -> Float64:
    """Logits [T, V] in float64 after each token, from a fresh network, or behind a source: what arrays are checked
    against."""
    x = weights.embedding[tokens].astype(np.float64)
    states = [(np.zeros(layer.units), np.zeros(layer.units)) for layer in weights.layers]
    outputs = None
    if weights.encoder is not None:
        assert source is not None
        outputs, states = _reference_source(weights, weights.encoder, source)
    if weights.attention is None:
        for layer, state in zip(weights.layers, states, strict=True):
            x, _, _ = _reference_lstm(layer, x, *state)
    else:
        assert outputs is not None
        x = _reference_attended(weights, weights.attention, outputs, states, x)
    output = weights.embedding.T if weights.output is None else weights.output
    return np.asarray(x @ output.astype(np.float64) + weights.output_bias)


def _reference_lstm(layer: LSTMWeights, x: Float64, h: Float64, c: Float64) -> tuple[Float64, Float64, Float64]:
    """Outputs [T, H] for inputs [T, K], and the last h and c."""
    kernel, recurrent, bias = (a.astype(np.float64) for a in (layer.kernel, layer.recurrent, layer.bias))
    out = []
    for z in x @ kernel + bias:
        i, f, g, o = np.split(z + h @ recurrent, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out), h, c


def _reference_source(
    weights: Weights, encoder: Encoder, source: npt.NDArray[np.int32]
) -> tuple[Float64, list[tuple[Float64, Float64]]]:
    """The encoder's outputs [S, D], and the first state of each of the decoder's layers."""
    x = (weights.embedding if encoder.embedding is None else encoder.embedding)[source].astype(np.float64)
    ends = []
    for forward, backward in encoder.layers:
        ways = [_reference_lstm(forward, x, np.zeros(forward.units), np.zeros(forward.units))]
        if backward is not None:
            out, h, c = _reference_lstm(backward, x[::-1], np.zeros(backward.units), np.zeros(backward.units))
            ways.append((out[::-1], h, c))
        x, h, c = (np.concatenate(parts, axis=-1) for parts in zip(*ways, strict=True))
        ends.append((h, c))
    states = []
    for n, bridge in enumerate(encoder.bridges):
        h, c = ends[min(n, len(ends) - 1)]
        if bridge is not None:
            both = np.concatenate([h, c])
            h = np.tanh(both @ bridge.h.kernel + bridge.h.bias)
            c = both @ bridge.c.kernel + bridge.c.bias
        states.append((h, c))
    return x, states


def _reference_attended(
    weights: Weights, a: Attention, outputs: Float64, states: list[tuple[Float64, Float64]], x: Float64
) -> Float64:
    """What the output layer reads, [T, A]."""
    given, found = np.zeros(a.units), []
    keys = outputs if a.key is None else outputs @ a.key
    first = weights.layers[0]
    for value in x:
        y = value[None]
        for n, layer in enumerate(weights.layers):
            if n == 0 and a.feed is not None:  # as further inputs
                layer = LSTMWeights(np.concatenate([first.kernel, a.feed]), first.recurrent, first.bias)
                y = np.concatenate([value, given])[None]
            y, h, c = _reference_lstm(layer, y, *states[n])
            states[n] = (h, c)
        hidden = y[0]
        if a.query is None or a.score is None:
            scores = keys @ hidden
        else:
            scores = np.tanh(keys + hidden @ a.query.kernel + a.query.bias) @ a.score
        share = np.exp(scores - scores.max())
        context = share @ outputs / share.sum()
        given = np.tanh(context @ a.context + hidden @ a.hidden + a.bias)
        found.append(given)
    return np.stack(found)


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2))
