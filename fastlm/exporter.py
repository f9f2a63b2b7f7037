# SPDX-License-Identifier: Apache-2.0
"""fastlm.export: a Keras model, or arrays, to a model file, with proof that the engine computes the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm import _engine, float64, format, keras_models
from fastlm.classifier import LABELS_KEY
from fastlm.options import GenerationOptions
from fastlm.quantizer import QuantizeReport, Text, check_arguments, quantize
from fastlm.seq2seq import END_KEY, SOURCE
from fastlm.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, read_text
from fastlm.weights import POOLINGS, ClassifierWeights, Weights

TEST_TOKENS = 64
"""Length of the test vector that travels with a model."""

TEST_SOURCE = 19
"""And of its source."""

TOLERANCE = 1e-4
"""Largest difference of a log-probability that is still rounding; more means another computation."""

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
    text: Text | None = None,
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
        one sigmoid for two labels, the second of which it is the probability of. Of a functional model of two inputs,
        a source and a text, the LSTM layers of the text begin with the states of those of the source. Arrays: see
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
    for label in found:
        if not label.isprintable() or not label.strip():
            raise ValueError(f"label {label!r}: expected a text that can be shown on a line")
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
        model = keras_models.load(os.fspath(model))
    if labels is not None:
        return keras_models.classifier(model), lambda tokens, _: keras_models.label_logprobs(model, tokens)
    if len(getattr(model, "inputs", None) or []) == 2:
        return keras_models.seq2seq(model)
    return keras_models.language_model(model), lambda tokens, _: keras_models.logprobs(model, tokens)


def _from_arrays(
    arrays: Mapping[str, Any], labels: Sequence[str] | None, pooling: str | None
) -> tuple[Weights | ClassifierWeights, LogProbs]:
    if labels is not None:
        judge = ClassifierWeights.from_dict(arrays, POOLINGS[0] if pooling is None else pooling)
        return judge, lambda tokens, _: float64.log_softmax(float64.label_logits(judge, tokens))
    weights = Weights.from_dict(arrays)
    return weights, lambda tokens, source: float64.log_softmax(float64.logits(weights, tokens, source))
