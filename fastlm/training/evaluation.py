# SPDX-License-Identifier: Apache-2.0
"""Perplexity and bits per character of a model on held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from fastlm.training.corpus import Corpus
from fastlm.training.network import Network
from fastlm.training.recurrence import Tensor


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes
    ----------
    nats : float
        Total negative log-likelihood.
    tokens, characters : int
        What was predicted: tokens with document borders, characters with the line ends between documents. Of a
        classifier: texts, and no characters.
    right : int or None
        Of a classifier: texts whose likeliest label is the right one.
    """

    nats: float
    tokens: int
    characters: int
    right: int | None = None

    def __str__(self) -> str:
        if self.right is not None:
            return f"accuracy {100 * self.accuracy:.2f} %, {self.nats_per_token:.3f} nats a text"
        return f"perplexity {self.perplexity:.2f}, {self.bits_per_char:.3f} bits/char"

    @property
    def accuracy(self) -> float:
        """Of a classifier: share of texts that it gives the right label, from 0 to 1."""
        return math.nan if self.right is None else self.right / self.tokens

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood of a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of `nats_per_token`."""
        return math.exp(min(self.nats_per_token, 700.0))  # beyond that a float overflows

    @property
    def bits_per_char(self) -> float:
        """Comparable across tokenizers."""
        return self.nats / math.log(2) / self.characters if self.characters else math.nan


class Evaluator:
    """Scores a corpus as one stream: from a zero state, the state carried to the end (dropout off).

    One stream is exact, and slow: every token is a product with a vector. Cut into ``streams`` equal
    pieces that are read side by side, it takes a fraction of the time; each piece but the first begins
    with the ``warm_up`` tokens before it, which are not counted. The first of them is a border: a network
    has only learnt to go on from the zero state behind one, and may never find back from anything else.
    On the bundled model's validation text 16 pieces give 33.11 where one stream gives 33.15: near enough
    to steer a run by.

    Parameters
    ----------
    network : Network
    corpus : Corpus
    steps : int
        Tokens a window.
    streams : int
        At most; a short text is cut into fewer.
    warm_up : int
        Tokens.
    """

    def __init__(self, network: Network, corpus: Corpus, steps: int = 64, streams: int = 1, warm_up: int = 256) -> None:
        streams = max(1, min(streams, corpus.tokens // warm_up))
        warm_up = 0 if streams == 1 else warm_up
        piece = math.ceil(corpus.tokens / streams)
        self._network, self._corpus = network, corpus
        self._geometry = steps, streams, warm_up, piece
        self._windows = math.ceil((warm_up + piece) / steps)
        self._run = tf.function(self._window)

    def __call__(self) -> Evaluation:
        """Evaluate the network's present weights."""
        ids = tf.constant(self._corpus.ids)
        state: list[Tensor] = self._network.zero_state(self._geometry[1])
        nats = 0.0
        for window in range(self._windows):
            loss, state = self._run(ids, tf.constant(window), state)
            nats += float(loss)
        return Evaluation(nats, self._corpus.tokens, self._corpus.characters)

    def _window(self, ids: Any, window: Any, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        steps, streams, warm_up, piece = self._geometry
        place = window * steps + tf.range(steps)[:, None]  # in the piece, counted from its warm-up
        index = place + tf.range(streams)[None, :] * piece - warm_up
        counted = (place >= warm_up) & (place < warm_up + piece) & (index < self._corpus.tokens)
        index = tf.clip_by_value(index, 0, self._corpus.tokens - 1)
        keep = tf.cast(index > 0, tf.float32)[:, :, None]  # the text begins with a fresh state
        inputs = tf.where(place == 0, ids[0], tf.gather(ids, index))
        logits, after = self._network(inputs, keep, state)
        labels = tf.reshape(tf.gather(ids, index + 1), [-1])
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return tf.reduce_sum(tf.where(tf.reshape(counted, [-1]), loss, np.float32(0))), after
