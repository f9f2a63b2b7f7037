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

from fastlm import _engine, float64, format
from fastlm.classifier import LABELS_KEY
from fastlm.options import GenerationOptions
from fastlm.quantizer import QuantizeReport, check_arguments, quantize
from fastlm.seq2seq import END_KEY, SOURCE
from fastlm.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, read_text
from fastlm.weights import POOLINGS, ClassifierWeights, Weights

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
# Of a classifier, which is given a text: [labels].
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
    labels: Sequence[str] | None = None,
    pooling: str | None = None,
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
    """Writes a model to a file that `fastlm.load` runs.

    Parameters
    ----------
    model : Keras model, path of a ``.keras`` file, or dict of arrays
        Embedding, then one or more LSTM layers, then Dense (linear or softmax). Sequential, functional, or
        subclassed (its layers are taken in the order in which they were declared). Dropout and noise layers do
        nothing when a model runs and are left out. A classifier (``labels``): LSTM layers may be Bidirectional, the
        last one gives its last output or is followed by GlobalAveragePooling1D or GlobalMaxPooling1D, and Dense may be
        one sigmoid for two labels, the second of which it is the probability of. Arrays: see
        `fastlm.weights.Weights.from_dict` and `fastlm.weights.ClassifierWeights.from_dict`.
    path : path
        Written under a temporary name and moved into place when complete and checked.
    tokenizer : optional
        A fastlm tokenizer, a ``tokenizers.Tokenizer`` or the path of its JSON, or ``"bytes"``. None: the model is
        used with token ids only.
    source_tokenizer : optional
        Of a sequence-to-sequence model, for sources, if they have another one. A source ends with its end of text, if
        it has one.
    labels : sequence of str, optional
        Of a classifier, in the order of its outputs.
    pooling : {"last", "mean", "max", "attention", "concat"}, optional
        Of a classifier that is given as arrays. Default: last.
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
    weights, logprobs = _read(model, labels, pooling)
    vocab_size = len(weights.embedding)
    known = _tokenizer(tokenizer, vocab_size)
    fields = _fields(known, bos, eos, sampling, metadata, vocab_size)
    fields |= _label_fields(weights, labels, source_tokenizer, sampling)
    if isinstance(weights, Weights):
        fields |= _source_fields(weights, known, source_tokenizer, fields)
    fields |= _test_vector(weights, logprobs, _test_tokens(vocab_size, fields), fields.get("lstm.test.source"))
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


def _test_vector(
    weights: Weights | ClassifierWeights, logprobs: LogProbs, tokens: npt.NDArray[np.int32], source: Any
) -> dict[str, Any]:
    """What the model itself says, which travels with it."""
    if isinstance(weights, ClassifierWeights):
        found = logprobs(tokens, None)
    else:
        rows = logprobs(tokens[:-1], source)
        tokens = tokens[: len(rows) + 1]
        found = rows[np.arange(len(rows)), tokens[1:]]
    return {
        "lstm.test.tokens": tokens,
        "lstm.test.logprobs": found.astype(np.float32),
        "lstm.test.tolerance": TOLERANCE,
    }


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


def _label_fields(
    weights: Weights | ClassifierWeights, labels: Sequence[str] | None, source_tokenizer: Any, sampling: Any
) -> dict[str, Any]:
    if not isinstance(weights, ClassifierWeights) or labels is None:
        return {}
    for name, given in (("source_tokenizer", source_tokenizer), ("sampling", sampling)):
        if given is not None:
            raise ValueError(f"{name}: a classifier has none")
    found, count = list(labels), weights.output.kernel.shape[1]
    if not all(isinstance(label, str) for label in found) or len(set(found)) != count or len(found) != count:
        raise ValueError(f"labels={found!r:.60}: expected {count} texts, no two of them alike: one for each output")
    return {LABELS_KEY: found}


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


def _read(
    model: Any, labels: Sequence[str] | None, pooling: str | None
) -> tuple[Weights | ClassifierWeights, LogProbs]:
    if pooling is not None and (labels is None or not isinstance(model, Mapping)):
        raise ValueError(f"pooling={pooling!r}: for a classifier (labels) that is given as arrays")
    if isinstance(labels, str):
        raise TypeError(f"labels={labels!r}: expected several texts, found one")
    if isinstance(model, Mapping):
        return _from_arrays(model, labels, pooling)
    if isinstance(model, (str, os.PathLike)):
        model = _load_keras(os.fspath(model))
    if labels is not None:
        return _classifier_from_keras(model), lambda tokens, _: _keras_label_logprobs(model, tokens)
    return _from_keras(model), lambda tokens, _: _keras_logprobs(model, tokens)


def _from_arrays(
    arrays: Mapping[str, Any], labels: Sequence[str] | None, pooling: str | None
) -> tuple[Weights | ClassifierWeights, LogProbs]:
    if labels is not None:
        judge = ClassifierWeights.from_dict(arrays, POOLINGS[0] if pooling is None else pooling)
        return judge, lambda tokens, _: float64.log_softmax(float64.label_logits(judge, tokens))
    weights = Weights.from_dict(arrays)
    return weights, lambda tokens, source: float64.log_softmax(float64.logits(weights, tokens, source))


def _load_keras(path: str) -> Any:
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


def _from_keras(model: Any) -> Weights:
    embedding, *cells, dense = _layers(model)
    arrays = _from_embedding(embedding)
    for n, cell in enumerate(cells):
        arrays.update(_from_lstm(f"lstm.{n}", cell))
    arrays.update(_from_dense(dense, embedding))
    return Weights.from_dict(arrays)


_POOLS = {"GlobalAveragePooling1D": "mean", "GlobalMaxPooling1D": "max"}


def _classifier_from_keras(model: Any) -> ClassifierWeights:
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


def _keras_label_logprobs(model: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    batch, length = _insisted_shape(model, tokens)
    if length is not None:
        raise ValueError(
            f"the model reads exactly {length} tokens, so texts of other lengths cannot be compared: build it with "
            "keras.Input((None,)) and set the trained weights"
        )
    found = _keras_output(model, tokens, batch)
    if found.shape == (1,):
        dense = _layers(model)[-1]
        logit = found[0] if dense.get_config()["activation"] == "linear" else np.log(found[0]) - np.log1p(-found[0])
        return float64.log_softmax(np.array([0, logit], np.float64))
    if (found >= 0).all() and np.isclose(found.sum(), 1, atol=1e-4):  # probabilities already
        return np.asarray(np.log(np.maximum(found, np.finfo(np.float32).tiny)))
    return float64.log_softmax(found)


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
    return float64.log_softmax(whole)


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
