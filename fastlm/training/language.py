# SPDX-License-Identifier: Apache-2.0
"""Language modelling as a task of the trainer: windows of text side by side, whose state is carried on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from fastlm.exporter import ExportReport, export
from fastlm.tokenizer import Tokenizer
from fastlm.training.corpus import Corpus, TrainingWindows
from fastlm.training.evaluation import Evaluation, Evaluator
from fastlm.training.network import Network, build_model
from fastlm.training.options import Options
from fastlm.training.recurrence import Tensor
from fastlm.weights import Weights

SAMPLING = {"temperature": 0.7, "top_p": 0.9}
"""What the model file recommends: a small model's tail is noise, and its top alone repeats itself. Chosen by
reading what the bundled model writes."""

_LEAST_BETWEEN = 100  # steps between evaluations: after fewer nothing has changed but by chance
_EVALUATIONS = 20  # an epoch, at most, where an epoch is shorter than that


class LanguageTask:
    """See `fastlm.training.trainer.Task`.

    Parameters
    ----------
    options : Options
    tokenizer : Tokenizer
    train, valid : Corpus
    pretrained : Weights, optional
        Of a language model with the options' sizes, to begin with.

    Attributes
    ----------
    model : keras.Model
    """

    def __init__(
        self, options: Options, tokenizer: Tokenizer, train: Corpus, valid: Corpus, pretrained: Weights | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.model = build_model(
            tokenizer.vocab_size,
            options.units,
            options.embedding,
            tied=options.tied,
            dropout=options.dropout,
            seed=options.seed,
        )
        if pretrained is not None:
            for variable, array in zip(self.model.trainable_variables, pretrained.to_dict().values(), strict=True):
                variable.assign(array)
        batch, steps = options.batch_size, options.sequence_length
        assert tokenizer.bos is not None
        self._windows = TrainingWindows(train, tokenizer.bos, batch, steps, options.seed)
        self._network = Network(self.model)
        self._evaluator = Evaluator(self._network, valid, steps, streams=16)
        self._train, self._valid_tokens, self._steps = train, valid.tokens, steps
        self._tokens = batch * steps
        self.variables = self._network.variables
        ids = tf.TensorSpec([steps, batch], tf.int32)
        self.specs = ids, ids, tf.TensorSpec([steps, batch, 1], tf.float32)
        self.state = [tf.Variable(s, trainable=False) for s in self._network.zero_state(batch)]
        self.per_epoch = self._windows.per_epoch
        # A validation pass costs about a third of a training pass, a token: at most a twentieth of the time.
        least = min(_LEAST_BETWEEN, self.per_epoch // _EVALUATIONS)
        self.evaluate_every = max(1, least, min(self.per_epoch, 6 * valid.tokens // self._tokens))
        self.digests = [train.digest, valid.digest]
        self.first_loss = math.log(tokenizer.vocab_size)

    def fields(self) -> dict[str, Any]:
        return self.tokenizer.fields()

    def from_step(self, first: int) -> Iterable[tuple[Any, ...]]:
        found: Iterable[tuple[Any, ...]] = self._windows.from_step(first)
        return found

    def tokens_of(self, batch: tuple[Any, ...]) -> int:
        return self._tokens

    def loss(self, batch: tuple[Any, ...], seed: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        inputs, targets, keep = batch
        logits, after = self._network(inputs, keep, [s.read_value() for s in self.state], seed)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.reshape(targets, [-1]), logits=logits)
        nats = tf.reduce_mean(losses)
        return nats, nats, after

    def evaluate(self, seen: bool = False) -> Evaluation:
        return self._seen() if seen else self._evaluator()

    @cached_property
    def _seen(self) -> Evaluator:
        """A piece of the training text from its middle, as long as the validation text."""
        tokens = min(self._train.tokens, self._valid_tokens)
        begin = (self._train.tokens - tokens) // 2
        piece = replace(self._train, ids=self._train.ids[begin : begin + tokens + 1], characters=0)
        return Evaluator(self._network, piece, self._steps, streams=16)

    def export(self, target: Path, metadata: Mapping[str, str]) -> ExportReport:
        return export(self.model, target, tokenizer=self.tokenizer, sampling=SAMPLING, metadata=metadata)
