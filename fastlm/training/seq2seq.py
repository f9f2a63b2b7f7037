# SPDX-License-Identifier: Apache-2.0
"""The sequence-to-sequence network as TensorFlow trains it: what `fastlm.weights.Weights` says, on padded batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from fastlm.training.layers import NEVER, Dropout, Places, Variables, read_stack
from fastlm.training.recurrence import Tensor


@dataclass(frozen=True)
class Shape:
    """Of a network.

    Attributes
    ----------
    source_vocab : int or None
        None: sources share the texts' vocabulary and embedding.
    vocab, embedding : int
    encoder, decoder : tuple of int
        Units of each layer; of the encoder in each direction.
    bidirectional : bool
    attention : str or None
        "dot", "general" or "additive" (Luong et al. 2015, Bahdanau et al. 2015).
    attention_units : int
        Of what the output layer reads.
    input_feeding : bool
    tied : bool
        The output matrix is the embedding, as wide as what it reads.
    copying : bool
        A token may also be the source's at a place that attention looks at (See et al. 2017).
    embedding_range : float
        Embeddings begin evenly between this and its negative.
    """

    source_vocab: int | None
    vocab: int
    embedding: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    bidirectional: bool
    attention: str | None
    attention_units: int
    input_feeding: bool
    tied: bool
    copying: bool = False
    embedding_range: float = 0.1


class Copies:
    """What is copied at each place of texts: the log-odds [T, B] that a token is written, and the weights [T, B, S] of
    places of the sources, int32 [S, B], that else one is drawn from."""

    def __init__(self, gate: Tensor, share: Tensor, sources: Tensor) -> None:
        self._gate, self._share, self._sources = gate, share, sources

    def logprobs(self, written: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities [T * B] of tokens [T, B], given those of being written, if anything is."""
        same = self._sources[None] == tokens[:, None]  # [T, S, B]
        share = tf.reduce_sum(tf.where(tf.transpose(same, [0, 2, 1]), self._share, 0.0), -1)
        copied = tf.math.log(tf.maximum(share, _LEAST_SHARE)) + tf.math.log_sigmoid(-self._gate)
        written = tf.reshape(written, tf.shape(copied)) + tf.math.log_sigmoid(self._gate)
        both = tf.reduce_logsumexp(tf.stack([written, copied]), 0)
        return tf.reshape(tf.where(share > _LEAST_SHARE, both, written), [-1])

    def likeliest(self) -> Tensor:
        """The token [T, B] of the source that is copied most likely at each place, if any is."""
        sources = tf.transpose(self._sources)  # [B, S]
        same = tf.cast(sources[:, :, None] == sources[:, None], tf.float32)
        best = tf.argmax(tf.einsum("tbs,bsr->tbr", self._share, same), -1)
        return tf.transpose(tf.gather(sources, tf.transpose(best), batch_dims=1))


_LEAST_SHARE = 1e-9  # smaller ones are taken for nothing


class Seq2SeqNetwork:
    """Variables by the names of `fastlm.weights.Weights.from_dict`, and what they compute.

    Parameters
    ----------
    shape : Shape
    dropout : float
        Share of values zeroed before every layer and the output, a mask for each place.
    seed : int
        Of the initial weights.
    """

    def __init__(self, shape: Shape, dropout: float, seed: int) -> None:
        self.shape, self._dropout = shape, dropout
        self.weights = Variables(seed)
        self._build()
        self.variables = list(self.weights.named.values())

    # ---- weights ---------------------------------------------------------------------------------------

    def _build(self) -> None:
        s = self.shape
        make = self.weights.make
        make("embedding", s.vocab, s.embedding, limit=s.embedding_range)
        if s.source_vocab is not None:
            make("source.embedding", s.source_vocab, s.embedding, limit=s.embedding_range)
        width = self.weights.make_stack("encoder", s.embedding, s.encoder, s.bidirectional)
        widths = [units * (1 + s.bidirectional) for units in s.encoder]
        inputs = s.embedding
        for n, units in enumerate(s.decoder):
            self.weights.make_lstm(f"lstm.{n}", inputs, units)
            for part in "hc":
                make(f"bridge.{n}.{part}.kernel", 2 * widths[min(n, len(widths) - 1)], units)
                make(f"bridge.{n}.{part}.bias", units)
            inputs = units
        if s.attention is not None:
            self._make_attention(s.attention, width, inputs)
            inputs = s.attention_units
        if not s.tied:
            make("output.kernel", inputs, s.vocab)
        make("output.bias", s.vocab)

    def _make_attention(self, kind: str, width: int, hidden: int) -> None:
        units, make = self.shape.attention_units, self.weights.make
        if kind != "dot":
            make("attention.key", width, hidden if kind == "general" else units)
        if kind == "additive":
            make("attention.query.kernel", hidden, units)
            make("attention.query.bias", units)
            make("attention.score", units, limit=units**-0.5)
        make("attention.context", width, units)
        make("attention.hidden", hidden, units)
        make("attention.bias", units)
        if self.shape.copying:
            make("attention.copy.kernel", units, 1)
            make("attention.copy.bias", 1)
        if self.shape.input_feeding:
            make("attention.feed", units, 4 * self.shape.decoder[0], limit=self.shape.decoder[0] ** -0.5)

    # ---- what it computes ------------------------------------------------------------------------------

    def __call__(
        self, sources: Tensor, lengths: Tensor, inputs: Tensor, seed: Tensor | None = None
    ) -> tuple[Tensor, Copies | None]:
        """Logits for every place of the texts, and what is copied there.

        Parameters
        ----------
        sources : int32 tensor [S, B]
            Padded in front.
        lengths : int32 tensor [B]
        inputs : int32 tensor [T, B]
            Texts behind their start.
        seed : int64 tensor [2], optional
            (seed, step): dropout is applied, drawn from it. None: no dropout.

        Returns
        -------
        logits : float32 tensor [T * B, V]
        copies : Copies or None
        """
        drop = Dropout(self._dropout, seed)
        outputs, states, mask = self._encode(sources, lengths, drop)
        hidden, share = self._decode(inputs, outputs, states, mask, drop)
        x = tf.reshape(drop(hidden), [-1, hidden.shape[-1]])
        w = self.weights
        copies = None
        if self.shape.copying:
            gate = tf.einsum("tba,ac->tbc", hidden, w["attention.copy.kernel"]) + w["attention.copy.bias"]
            copies = Copies(gate[:, :, 0], share, sources)
        if self.shape.tied:
            return tf.matmul(x, w["embedding"], transpose_b=True) + w["output.bias"], copies
        return tf.matmul(x, w["output.kernel"]) + w["output.bias"], copies

    def _encode(self, sources: Tensor, lengths: Tensor, drop: Dropout) -> tuple[Tensor, list[Tensor], Tensor]:
        """The last layer's outputs [S, B, D], the decoder's first states, and 0 or `NEVER` for each place [S, B]."""
        w, s = self.weights, self.shape
        places = Places(sources, lengths)
        x = tf.gather(w["embedding" if s.source_vocab is None else "source.embedding"], sources)
        x, ends = read_stack(w, "encoder", x, places, len(s.encoder), s.bidirectional, drop)
        states = []
        for n in range(len(s.decoder)):
            end = drop(tf.concat(ends[min(n, len(ends) - 1)], 1))
            h, c = (tf.matmul(end, w[f"bridge.{n}.{p}.kernel"]) + w[f"bridge.{n}.{p}.bias"] for p in "hc")
            states.append((tf.tanh(h), c))
        return x, states, tf.where(places.real, np.float32(0), np.float32(NEVER))

    def _decode(
        self, inputs: Tensor, outputs: Tensor, states: list[Tensor], mask: Tensor, drop: Dropout
    ) -> tuple[Tensor, Tensor | None]:
        """What the output layer reads, [T, B, A], and the weights of the source's places, [T, B, S]."""
        s = self.shape
        x = tf.gather(self.weights["embedding"], inputs)
        if s.input_feeding and s.attention is not None:
            return self._decode_feeding(drop(x), outputs, states, mask, drop)
        keep = tf.ones_like(inputs, tf.float32)[:, :, None]
        for n in range(len(s.decoder)):
            x, _, _ = self.weights.run_lstm(f"lstm.{n}", drop(x), keep, states[n])
        if s.attention is None:
            return x, None
        return self._attend(self._tensors(), drop(x), outputs, self._keys(outputs), mask)

    def _decode_feeding(
        self, x: Tensor, outputs: Tensor, states: list[Tensor], mask: Tensor, drop: Dropout
    ) -> tuple[Tensor, Tensor]:
        """Place by place, since each reads what attention gave to the one before."""
        w = self._tensors()
        kernel, keys = tf.concat([w["lstm.0.kernel"], w["attention.feed"]], 0), self._keys(outputs)
        steps, batch = tf.shape(x)[0], tf.shape(x)[1]
        masks = [drop.mask([batch, units]) for units in self.shape.decoder]  # the same at every place

        def step(t: Tensor, given: Tensor, states: list[Any], found: Tensor, shares: Tensor) -> tuple[Any, ...]:
            y, after = tf.concat([x[t], given], 1), []
            for n, (units, (h, c)) in enumerate(zip(self.shape.decoder, states, strict=True)):
                z = tf.matmul(y, kernel if n == 0 else w[f"lstm.{n}.kernel"])
                z += tf.matmul(h, w[f"lstm.{n}.recurrent_kernel"]) + w[f"lstm.{n}.bias"]
                i, f, o = (tf.sigmoid(z[:, at * units : (at + 1) * units]) for at in (0, 1, 3))
                c = f * c + i * tf.tanh(z[:, 2 * units : 3 * units])
                h = o * tf.tanh(c)
                after.append((h, c))
                y = h * masks[n]
            given, share = (part[0] for part in self._attend(w, y[None], outputs, keys, mask))
            return t + 1, given, after, found.write(t, given), shares.write(t, share)

        found = tf.TensorArray(tf.float32, steps, element_shape=[None, self.shape.attention_units])
        shares = tf.TensorArray(tf.float32, steps, element_shape=[None, None])
        first = tf.zeros([batch, self.shape.attention_units])
        *_, found, shares = tf.while_loop(
            lambda t, *_: t < steps, step, (0, first, list(states), found, shares), maximum_iterations=steps
        )
        return tf.ensure_shape(found.stack(), [None, None, self.shape.attention_units]), shares.stack()

    def _tensors(self) -> dict[str, Tensor]:
        """The weights' values: a loop's gradients do not reach a variable that is read inside it."""
        return {name: tf.convert_to_tensor(variable) for name, variable in self.weights.named.items()}

    def _keys(self, outputs: Tensor) -> Tensor:
        key = self.weights.named.get("attention.key")
        return outputs if key is None else tf.einsum("sbd,dk->sbk", outputs, tf.convert_to_tensor(key))

    def _attend(
        self, w: dict[str, Tensor], hidden: Tensor, outputs: Tensor, keys: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[T, B, A] for hidden values [T, B, H], and the weights of the source's places [T, B, S]."""
        if self.shape.attention == "additive":
            query = tf.einsum("tbh,ha->tba", hidden, w["attention.query.kernel"]) + w["attention.query.bias"]
            both = tf.tanh(query[:, None] + keys[None])  # [T, S, B, A]
            scores = tf.einsum("tsba,a->bts", both, w["attention.score"])
        else:
            scores = tf.einsum("tbh,sbh->bts", hidden, keys)
        share = tf.nn.softmax(scores + tf.transpose(mask)[:, None], -1)
        context = tf.einsum("bts,sbd->tbd", share, outputs)
        mixed = tf.einsum("tbd,da->tba", context, w["attention.context"])
        given = tf.tanh(mixed + tf.einsum("tbh,ha->tba", hidden, w["attention.hidden"]) + w["attention.bias"])
        return given, tf.transpose(share, [1, 0, 2])
