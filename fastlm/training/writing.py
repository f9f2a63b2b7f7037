# SPDX-License-Identifier: Apache-2.0
"""Writing a text for a source as a task of the trainer: translation, summaries, answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from fastlm.exporter import ExportReport, export
from fastlm.tokenizer import HuggingFaceTokenizer
from fastlm.training.evaluation import Evaluation
from fastlm.training.options import PairOptions
from fastlm.training.pairs import Batches, Pairs, Splits
from fastlm.training.recurrence import Tensor
from fastlm.training.seq2seq import Copies, Seq2SeqNetwork, Shape

SOURCE = "source."
"""How the keys of a source's own tokenizer start in a checkpoint."""

_RISE = 5.0  # epochs in which guesses take their full share

_LEAST_BETWEEN = 100  # steps between evaluations: after fewer nothing has changed but by chance


class WritingTask:
    """See `fastlm.training.trainer.Task`.

    Parameters
    ----------
    options : PairOptions
    source, text : HuggingFaceTokenizer
        The same object if they share one vocabulary and embedding.
    train, valid : Pairs
    """

    def __init__(
        self,
        options: PairOptions,
        source: HuggingFaceTokenizer,
        text: HuggingFaceTokenizer,
        train: Pairs,
        valid: Pairs,
    ) -> None:
        self.options, self.source_tokenizer, self.tokenizer = options, source, text
        shape = Shape(
            source_vocab=None if source is text else source.vocab_size,
            vocab=text.vocab_size,
            embedding=options.embedding,
            encoder=options.encoder_units,
            decoder=options.units,
            bidirectional=options.bidirectional,
            attention=options.attention,
            attention_units=options.attention_units,
            input_feeding=options.input_feeding,
            tied=options.tied,
            copying=options.copying,
            embedding_range=options.embedding_range,
        )
        self.network = Seq2SeqNetwork(shape, options.dropout, options.seed)
        splits = Splits(options.bpe_dropout, source, text) if options.bpe_dropout else None
        self._batches = Batches(train, options.batch_tokens, options.seed, splits)
        self._train, self._valid, self._held = train, valid, Batches(valid, 4 * options.batch_tokens, None)
        ids = tf.TensorSpec([None, None], tf.int32)
        self.specs = ids, tf.TensorSpec([None], tf.int32), ids, ids
        self._score = tf.function(self._nats, input_signature=self.specs)
        self.variables = self.network.variables
        self.state: list[Any] = []
        self.per_epoch = self._batches.per_epoch
        # A validation pass costs about a third of a training pass, a token: at most a twentieth of the time.
        self.evaluate_every = max(_LEAST_BETWEEN, math.ceil(6 * valid.tokens / train.tokens * self.per_epoch))
        self.digests = [train.digest, valid.digest]
        self.first_loss = math.log(text.vocab_size)

    def fields(self) -> dict[str, Any]:
        own = {} if self.source_tokenizer is self.tokenizer else self.source_tokenizer.fields()
        return {**self.tokenizer.fields(), **{f"{SOURCE}{key}": value for key, value in own.items()}}

    def from_step(self, first: int) -> Iterable[tuple[Any, ...]]:
        return self._batches.from_step(first)

    def tokens_of(self, batch: tuple[Any, ...]) -> int:
        return int((batch[3] >= 0).sum())

    def loss(self, batch: tuple[Any, ...], seed: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Cross-entropy; a share of each target is spread over all tokens (label smoothing, Szegedy et al. 2016)."""
        sources, lengths, inputs, targets = batch
        if self.options.scheduled_sampling:
            inputs = self._with_guesses(sources, lengths, inputs, seed)
        logits, copies = self.network(sources, lengths, inputs, seed)
        nats, counted = self._each(logits, copies, targets)
        mean = tf.reduce_sum(nats) / tf.reduce_sum(counted)
        smoothing = self.options.label_smoothing
        if not smoothing:
            return mean, mean, []
        spread = tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1)  # of all tokens, each as likely
        even = tf.reduce_sum(spread * counted) / tf.reduce_sum(counted)
        return (1 - smoothing) * mean + smoothing * even, mean, []

    def _with_guesses(self, sources: Tensor, lengths: Tensor, inputs: Tensor, seed: Tensor) -> Tensor:
        """Some inputs become what the model would have written there behind the true text before."""
        logits, copies = self.network(sources, lengths, inputs)
        guesses = tf.reshape(tf.argmax(logits, -1, tf.int32), tf.shape(inputs))
        if copies is not None:  # of the token written most likely, and that copied most likely, the likelier
            copied = copies.likeliest()
            nats = [self._each(logits, copies, tokens)[0] for tokens in (guesses, copied)]
            guesses = tf.where(tf.reshape(nats[1] < nats[0], tf.shape(inputs)), copied, guesses)
        guesses = tf.concat([inputs[:1], guesses[:-1]], 0)
        rise = tf.minimum(tf.cast(seed[1], tf.float32) / (_RISE * self.per_epoch), 1.0)
        drawn = tf.random.stateless_uniform(tf.shape(inputs), seed=seed * [1, 4096] + [1, 0])
        return tf.stop_gradient(tf.where(drawn < self.options.scheduled_sampling * rise, guesses, inputs))

    def evaluate(self, seen: bool = False) -> Evaluation:
        pairs, batches = self._seen if seen else (self._valid, self._held)
        total = sum(float(self._score(*map(tf.convert_to_tensor, batch))) for batch in batches.once())
        return Evaluation(total, pairs.tokens, pairs.characters)

    @cached_property
    def _seen(self) -> tuple[Pairs, Batches]:
        """As many training pairs as there are validation pairs, from everywhere."""
        pairs = self._train.sample(len(self._valid.sources))
        return pairs, Batches(pairs, 4 * self.options.batch_tokens, None)

    def export(self, target: Path, metadata: Mapping[str, str]) -> ExportReport:
        return export(
            self.network.weights.arrays(),
            target,
            tokenizer=self.tokenizer,
            source_tokenizer=None if self.source_tokenizer is self.tokenizer else self.source_tokenizer,
            sampling={"temperature": 0.0},
            metadata=metadata,
        )

    def _nats(self, sources: Tensor, lengths: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return tf.reduce_sum(self._each(*self.network(sources, lengths, inputs), targets)[0])

    @staticmethod
    def _each(logits: Tensor, copies: Copies | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each place, 0 where nothing is predicted, and 1 or 0 for that."""
        flat = tf.reshape(targets, [-1])
        counted = tf.cast(flat >= 0, tf.float32)
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(flat, 0), logits=logits)
        if copies is not None:
            nats = -copies.logprobs(-nats, tf.maximum(targets, 0))
        return nats * counted, counted
