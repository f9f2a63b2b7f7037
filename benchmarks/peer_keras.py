# SPDX-License-Identifier: Apache-2.0
"""Keras as its users call it: a model of its own layers, run once per token with the state passed in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import PADDED, Form, Job, Stepper, score_padded
from peer_tensorflow import use_threads

MODULES = ("tensorflow", "keras")
PREDICT = Form("Keras", "f32", "predict", role="careless", streams=False)
CALL = Form("Keras", "f32", "model()", role="careless", streams=False, draws=True)
FUNCTION = Form("Keras", "f32", "tf.function", streams=False, scores=True)
FORMS = (PREDICT, CALL, FUNCTION)
convert = None  # there is no file: the weights are set


def Runner(job: Job) -> Any:
    return Scorer(job) if job.output == "logprobs" else Decoder(job)


class Scorer:
    def __init__(self, job: Job) -> None:
        import tensorflow as tf

        use_threads(job.threads)
        model = _scoring_model(job)

        @tf.function(input_signature=[tf.TensorSpec([PADDED, None], tf.int32)])  # type: ignore[untyped-decorator]
        def run(tokens: Any) -> Any:
            logits = model(tokens[:, :-1], training=False)
            return -tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], logits)

        self._run = run

    def score(self, texts: list[list[int]]) -> list[NDArray[np.float32]]:
        return score_padded(texts, lambda rows: self._run(rows.astype(np.int32)).numpy())


class Decoder(Stepper):
    _inputs: Any

    def __init__(self, job: Job) -> None:
        import tensorflow as tf

        use_threads(job.threads)
        self.output, model = job.output, _model(job)
        ways = {
            PREDICT: lambda inputs: model.predict(inputs, verbose=0),
            CALL: lambda inputs: model(inputs, training=False),
            FUNCTION: tf.function(lambda inputs: model(inputs, training=False)),
        }
        self._call = ways[job.form]
        zeros = [np.zeros([job.batch, job.workload.H], np.float32)] * (2 * job.workload.L)
        self._start = [np.array(job.workload.start(job.batch), np.int32)[:, np.newaxis], *zeros]
        self._argmax = (
            (lambda logits: logits.argmax(-1, keepdims=True).astype(np.int32))
            if job.form == PREDICT
            else (lambda logits: tf.argmax(logits, axis=-1, output_type=tf.int32)[:, tf.newaxis])
        )
        self._tensors = (lambda arrays: arrays) if job.form == PREDICT else (lambda arrays: [*map(tf.constant, arrays)])
        self.rewind()

    def step(self) -> None:
        self._logits, *state = self._call(self._inputs)
        self._inputs = [self._argmax(self._logits), *state]

    def rewind(self) -> None:
        self._inputs = self._tensors(self._start)

    def tokens(self) -> NDArray[np.int32]:
        return np.asarray(self._inputs[0]).ravel()

    def put(self, token: int) -> None:
        self._inputs[0] = self._tensors([np.array([[token]], np.int32)])[0]

    def logits(self) -> NDArray[np.float32]:
        return np.asarray(self._logits).ravel()


def _model(job: Job) -> Any:
    """`[token [B, 1], h and c of each layer [B, H]] -> [logits [B, V], new h and c]`."""
    import keras

    V, E, H, L = (getattr(job.workload, letter) for letter in "VEHL")
    token = keras.Input([1], batch_size=job.batch, dtype="int32")
    state = [keras.Input([H], batch_size=job.batch) for _ in range(2 * L)]
    embedding, output = keras.layers.Embedding(V, E), keras.layers.Dense(V)
    cells = [keras.layers.LSTM(H, return_sequences=True, return_state=True) for _ in range(L)]
    x, new_state = embedding(token), []
    for layer, cell in enumerate(cells):
        x, h, c = cell(x, initial_state=state[2 * layer : 2 * layer + 2])
        new_state += [h, c]
    model = keras.Model([token, *state], [output(x[:, 0]), *new_state])
    _set_weights(job, embedding, cells, output)
    return model


def _scoring_model(job: Job) -> Any:
    """`token [B, T] -> logits [B, T, V]`."""
    import keras

    V, E, H, L = (getattr(job.workload, letter) for letter in "VEHL")
    embedding, output = keras.layers.Embedding(V, E), keras.layers.Dense(V)
    cells = [keras.layers.LSTM(H, return_sequences=True) for _ in range(L)]
    model = keras.Sequential([keras.Input([None], batch_size=PADDED, dtype="int32"), embedding, *cells, output])
    _set_weights(job, embedding, cells, output)
    return model


def _set_weights(job: Job, embedding: Any, cells: list[Any], output: Any) -> None:
    w = job.workload.weights
    embedding.set_weights([w["embedding"]])
    output.set_weights([w["output.kernel"], w["output.bias"]])
    for layer, cell in enumerate(cells):
        cell.set_weights([w[f"lstm.{layer}.{part}"] for part in ("kernel", "recurrent_kernel", "bias")])
