# SPDX-License-Identifier: Apache-2.0
"""The language model: a plain Keras model, and the same variables run through the fast recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from fastlm.training.recurrence import Tensor, lstm


@keras.saving.register_keras_serializable("fastlm")
class TiedDense(keras.layers.Layer):  # type: ignore[misc]
    """An output layer whose matrix is the embedding's (Press & Wolf 2017): logits = x @ embeddings.T + bias.

    Parameters
    ----------
    embedding : keras.layers.Embedding
        The layer to share with; its output size must be that of this layer's input.
    """

    def __init__(self, embedding: keras.layers.Embedding, **options: Any) -> None:
        super().__init__(**options)
        self.embedding = embedding

    def build(self, input_shape: Sequence[int | None]) -> None:
        if input_shape[-1] != self.embedding.output_dim:
            raise ValueError(
                f"tied weights need equal sizes: the embedding has {self.embedding.output_dim}, "
                f"the layer before the output {input_shape[-1]}"
            )
        if not self.embedding.built:  # when a model is loaded, this layer may be restored first
            self.embedding.build()
        self.bias = self.add_weight(name="bias", shape=(self.embedding.input_dim,), initializer="zeros")

    def call(self, inputs: Tensor) -> Tensor:
        return keras.ops.matmul(inputs, keras.ops.transpose(self.embedding.embeddings)) + self.bias

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.embedding.input_dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "embedding": keras.saving.serialize_keras_object(self.embedding)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TiedDense:
        embedding = keras.saving.deserialize_keras_object(config.pop("embedding"))
        return cls(embedding, **config)


def build_model(
    vocab_size: int,
    units: Sequence[int],
    embedding: int,
    *,
    tied: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
) -> keras.Model:
    """A Keras language model: Embedding, then Dropout and LSTM for every layer, Dropout, and logits.

    Parameters
    ----------
    vocab_size : int
    units : sequence of int
        Hidden units of each LSTM layer.
    embedding : int
        Size of a token's vector.
    tied : bool
        Share the output matrix with the embedding; ``units[-1]`` must equal ``embedding``.
    dropout : float
        Share of values zeroed before every LSTM layer and before the output (Zaremba et al. 2014).
    seed : int
        Of the initial weights: the same seed gives the same model.

    Returns
    -------
    keras.Model
        From ids, int32 [batch, time], to logits, float32 [batch, time, vocab_size].

    Raises
    ------
    ValueError
        If ``tied`` is asked for with sizes that differ.

    Examples
    --------
    >>> build_model(100, [32], 16).count_params()
    11236
    """

    def uniform(limit: float) -> keras.initializers.Initializer:
        nonlocal seed
        seed += 1
        return keras.initializers.RandomUniform(-limit, limit, seed=seed)

    ids = keras.Input((None,), dtype="int32")
    embed = keras.layers.Embedding(vocab_size, embedding, embeddings_initializer=uniform(0.05))
    x = embed(ids)
    for n in units:
        x = keras.layers.Dropout(dropout)(x)
        limit = n**-0.5
        x = keras.layers.LSTM(
            n, return_sequences=True, kernel_initializer=uniform(limit), recurrent_initializer=uniform(limit)
        )(x)
    x = keras.layers.Dropout(dropout)(x)
    output = TiedDense(embed) if tied else keras.layers.Dense(vocab_size, kernel_initializer=uniform(units[-1] ** -0.5))
    return keras.Model(ids, output(x))


_PLACES = 1024
"""Room for this many dropout layers between the random numbers of one step and the next."""


def load_keras_model(path: str) -> keras.Model:
    """A model from a ``.keras`` file, which may have a `TiedDense` layer."""
    return keras.models.load_model(path, compile=False)


class Network:
    """Runs the variables of a `build_model` model through the fast recurrence, time first.

    Parameters
    ----------
    model : keras.Model
        The weights stay the model's own: what is trained here is trained there.
    """

    def __init__(self, model: keras.Model) -> None:
        self._embedding = next(layer for layer in model.layers if isinstance(layer, keras.layers.Embedding))
        self._lstms = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
        self._output = model.layers[-1]
        self._dropout = next(layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout))
        self.variables = [v.value for v in model.trainable_variables]

    def zero_state(self, batch: int) -> list[Tensor]:
        """h and c of every layer, float32 [batch, H], all zero."""
        return [tf.zeros([batch, layer.units]) for layer in self._lstms for _ in "hc"]

    def __call__(
        self, ids: Tensor, keep: Tensor, state: Sequence[Tensor], seed: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits for every step.

        Parameters
        ----------
        ids : int32 tensor [T, B]
        keep : float32 tensor [T, B, 1]
            0 where the state starts afresh, see `lstm`.
        state : list of float32 tensors [B, H]
            h and c of every layer.
        seed : int64 tensor [2], optional
            (seed, step): dropout is applied, drawn from it. None: no dropout.

        Returns
        -------
        logits : float32 tensor [T * B, V]
        state : list of float32 tensors [B, H]
        """
        x = tf.gather(self._embedding.embeddings.value, ids)
        after: list[Tensor] = []
        for n, layer in enumerate(self._lstms):
            weights = [tf.convert_to_tensor(v.value) for v in layer.cell.trainable_variables]
            x, h, c = lstm(self._drop(x, seed, n), keep, *weights, *state[2 * n : 2 * n + 2])
            after += [h, c]
        x = self._drop(tf.reshape(x, [-1, x.shape[-1]]), seed, len(self._lstms))
        return self._logits(x), after

    def _logits(self, x: Tensor) -> Tensor:
        bias = self._output.bias.value
        if isinstance(self._output, TiedDense):
            return tf.matmul(x, self._output.embedding.embeddings.value, transpose_b=True) + bias
        return tf.matmul(x, self._output.kernel.value) + bias

    def _drop(self, x: Tensor, seed: Tensor | None, place: int) -> Tensor:
        if seed is None or self._dropout == 0:
            return x
        # Stateless: the mask depends on seed, step and place only, so a resumed run draws the same ones.
        return tf.nn.experimental.stateless_dropout(x, self._dropout, seed=seed * [1, _PLACES] + [0, place])
