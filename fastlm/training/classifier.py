# SPDX-License-Identifier: Apache-2.0
"""Giving labels to texts as a task of the trainer: the network, its batches, and calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from fastlm.classifier import named
from fastlm.exporter import ExportReport, export
from fastlm.float64 import log_softmax
from fastlm.tokenizer import Tokenizer
from fastlm.training.evaluation import Evaluation
from fastlm.training.layers import NEVER, Dropout, Places, Variables, read_stack
from fastlm.training.options import LabelOptions
from fastlm.training.pairs import Batches, Pairs, digest_of
from fastlm.training.recurrence import Tensor
from fastlm.weights import Weights

LABELS = "labels"
"""The key of a checkpoint's tokenizer under which the labels are."""

_LEAST_BETWEEN = 50  # steps between evaluations: after fewer nothing has changed but by chance

_EVALUATIONS = 4  # an epoch, at most: labels are learnt in few of them


class ClassifierNetwork:
    """Variables by the names of `fastlm.weights.ClassifierWeights.from_dict`, and what they compute.

    Parameters
    ----------
    options : LabelOptions
    vocab_size, labels : int
    pretrained : Weights, optional
        A language model whose embedding and LSTM layers are taken over, the latter for the direction that reads
        forwards (Dai & Le 2015, Howard & Ruder 2018).
    """

    def __init__(self, options: LabelOptions, vocab_size: int, labels: int, pretrained: Weights | None = None) -> None:
        o = self._options = options
        self.weights = w = Variables(o.seed)
        w.make("embedding", vocab_size, o.embedding, limit=0.1)
        width = w.make_stack("lstm", o.embedding, o.units, o.bidirectional)
        if o.pooling == "attention":
            w.make("pooling.key.kernel", width, o.attention_units)
            w.make("pooling.key.bias", o.attention_units)
            w.make("pooling.score", o.attention_units, limit=o.attention_units**-0.5)
        w.make("output.kernel", 3 * width if o.pooling == "concat" else width, labels)
        w.make("output.bias", labels)
        if pretrained is not None:
            self._take_over(pretrained.to_dict())
        self.variables = list(w.named.values())

    def _take_over(self, arrays: Mapping[str, Any]) -> None:
        for name, array in arrays.items():
            if name == "embedding" or name.startswith("lstm."):
                missing = self.weights[name].shape[0] - len(array)  # of what a second direction gives
                fill = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
                self.weights[name].assign(np.pad(array, fill))

    def __call__(self, texts: Tensor, lengths: Tensor, seed: Tensor | None = None) -> Tensor:
        """Logits [B, labels] for texts int32 [S, B], padded in front. ``seed``: as for a `Dropout`."""
        o, drop = self._options, Dropout(self._options.dropout, seed)
        places = Places(texts, lengths)
        x = tf.gather(self.weights["embedding"], texts)
        outputs, ends = read_stack(self.weights, "lstm", x, places, len(o.units), o.bidirectional, drop)
        pooled = drop(self._pool(outputs, ends[-1][0], places, lengths))
        return tf.matmul(pooled, self.weights["output.kernel"]) + self.weights["output.bias"]

    def _pool(self, outputs: Tensor, last: Tensor, places: Places, lengths: Tensor) -> Tensor:
        kind, real = self._options.pooling, places.real[:, :, None]
        if kind == "last":
            return last
        if kind == "attention":
            w = self.weights
            keys = tf.tanh(tf.einsum("sbd,da->sba", outputs, w["pooling.key.kernel"]) + w["pooling.key.bias"])
            scores = tf.einsum("sba,a->sb", keys, w["pooling.score"])
            share = tf.nn.softmax(tf.where(places.real, scores, NEVER), 0)
            return tf.einsum("sb,sbd->bd", share, outputs)
        mean = tf.reduce_sum(tf.where(real, outputs, 0.0), 0) / tf.cast(lengths, tf.float32)[:, None]
        if kind == "mean":
            return mean
        largest = tf.reduce_max(tf.where(real, outputs, NEVER), 0)
        return largest if kind == "max" else tf.concat([last, largest, mean], 1)


class ClassifyingTask:
    """See `fastlm.training.trainer.Task`. What is predicted of a text is one thing, its label, so "tokens" are texts.

    Parameters
    ----------
    options : LabelOptions
    tokenizer : Tokenizer
    labels : sequence of str
    train, valid : sequence of (text, label)
    pretrained : Weights, optional
    """

    def __init__(
        self,
        options: LabelOptions,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        train: Sequence[tuple[str, str]],
        valid: Sequence[tuple[str, str]],
        pretrained: Weights | None = None,
    ) -> None:
        self.options, self.tokenizer, self.labels = options, tokenizer, list(labels)
        rows = tokenizer.vocab_size if pretrained is None else len(pretrained.embedding)
        self.network = ClassifierNetwork(options, rows, len(labels), pretrained)
        train_pairs, valid_pairs = self._pairs("training", train), self._pairs("validation", valid)
        self._batches = Batches(train_pairs, options.batch_tokens, options.seed)
        self._held = Batches(valid_pairs, 4 * options.batch_tokens, None)
        self._train, self._held_texts = train_pairs, len(valid_pairs.sources)
        ids, lengths = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)
        self.specs = ids, lengths, ids, ids
        self._logits = tf.function(self.network.__call__, input_signature=[ids, lengths])
        self.variables, self.state = self.network.variables, list[Any]()
        self.per_epoch = self._batches.per_epoch
        self.evaluate_every = max(_LEAST_BETWEEN, self.per_epoch // _EVALUATIONS)
        self.digests = [train_pairs.digest, valid_pairs.digest]
        self.first_loss = math.log(len(labels))

    def _pairs(self, what: str, given: Sequence[tuple[str, str]]) -> Pairs:
        """A label is a text of one token, its number, so that batches are those of pairs."""
        known = {label: n for n, label in enumerate(self.labels)}
        for number, (_, label) in enumerate(given, 1):
            if label not in known:
                raise ValueError(
                    f"{what} text {number} has the label {label!r:.60}, which no training text has: expected "
                    f"{named(self.labels)}"
                )
        begin = [] if self.tokenizer.bos is None else [self.tokenizer.bos]  # as `Classifier` reads a text
        sources = [np.array([*begin, *self.tokenizer.encode(text)], np.int32) for text, _ in given]
        texts = [np.array([known[label]], np.int32) for _, label in given]
        return Pairs(sources, texts, bos=0, eos=0, characters=0, digest=digest_of(*sources, *texts))

    def fields(self) -> dict[str, Any]:
        return {**self.tokenizer.fields(), LABELS: self.labels}

    def from_step(self, first: int) -> Iterable[tuple[Any, ...]]:
        return self._batches.from_step(first)

    def tokens_of(self, batch: tuple[Any, ...]) -> int:
        return len(batch[1])

    def loss(self, batch: tuple[Any, ...], seed: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Cross-entropy; a share of each target is spread over all labels (label smoothing, Szegedy et al. 2016)."""
        texts, lengths, _, targets = batch
        logits = self.network(texts, lengths, seed)
        nats = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets[0], logits=logits))
        smoothing = self.options.label_smoothing
        even = tf.reduce_mean(tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1))
        return (1 - smoothing) * nats + smoothing * even, nats, []

    def evaluate(self, seen: bool = False) -> Evaluation:
        logits, labels = self._judge(self._seen if seen else self._held)
        nats = calibrated_nats(logits, labels, temperature_of(logits, labels))
        return Evaluation(nats * len(labels), len(labels), 0, int((logits.argmax(1) == labels).sum()))

    @cached_property
    def _seen(self) -> Batches:
        """As many training texts as there are validation texts, from everywhere."""
        return Batches(self._train.sample(self._held_texts), 4 * self.options.batch_tokens, None)

    def _judge(self, batches: Batches) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Logits of all texts, and their labels."""
        logits, labels = [], []
        for texts, lengths, _, targets in batches.once():
            logits.append(self._logits(tf.convert_to_tensor(texts), tf.convert_to_tensor(lengths)).numpy())
            labels.append(targets[0])
        return np.concatenate(logits).astype(np.float64), np.concatenate(labels)

    def export(self, target: Path, metadata: Mapping[str, str]) -> ExportReport:
        """With probabilities that are calibrated on the validation texts: its temperature is in the output layer."""
        arrays = self.network.weights.arrays()
        temperature = temperature_of(*self._judge(self._held))
        for name in ("output.kernel", "output.bias"):
            arrays[name] = (arrays[name] / temperature).astype(np.float32)
        return export(
            arrays,
            target,
            tokenizer=self.tokenizer,
            labels=self.labels,
            pooling=self.options.pooling,
            metadata=metadata,
        )


def calibrated_nats(logits: npt.NDArray[Any], labels: npt.NDArray[Any], temperature: float) -> float:
    """Mean cross-entropy of labels when logits are divided by a temperature. Of n texts with a label it is taken to be
    right for n + 1 of n + 2 (Platt 1999), so that what is always right here is not taken to be so everywhere."""
    rows = log_softmax(logits / temperature)
    counts = np.bincount(labels, minlength=logits.shape[1])[labels]
    right, wrong = (counts + 1) / (counts + 2), 1 / (counts + 2) / (logits.shape[1] - 1)
    of_label = rows[np.arange(len(labels)), labels]
    return float(-(right * of_label + wrong * (rows.sum(1) - of_label)).mean())


def temperature_of(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """That makes probabilities as true as one number can (temperature scaling, Guo et al. 2017): the likelihood of the
    labels is largest. Of its logarithm the likelihood has one hill, which is closed in on."""
    low, high = math.log(0.05), math.log(20)
    while high - low > 1e-4:
        third = (high - low) / 3
        left, right = (calibrated_nats(logits, labels, math.exp(at)) for at in (low + third, high - third))
        low, high = (low, high - third) if left < right else (low + third, high)
    return math.exp((low + high) / 2)
