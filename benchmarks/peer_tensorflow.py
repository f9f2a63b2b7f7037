# SPDX-License-Identifier: Apache-2.0
"""TensorFlow: the cells written out, either called once per token or in a loop inside one graph."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import Form, Job, Stepper

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read once, when tensorflow is first imported

MODULES = ("tensorflow",)
CELLS = Form("TensorFlow", "f32", "tf.function", draws=True)
LOOP = Form("TensorFlow", "f32", "loop", streams=False)
XLA_LOOP = Form("TensorFlow", "f32", "XLA loop", streams=False)
FORMS = (CELLS, LOOP, XLA_LOOP)
convert = None  # there is no file: the weights become variables


def use_threads(threads: int) -> None:
    """Before TensorFlow computes anything. One operation runs at a time: a step is a chain."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def network(job: Job) -> Any:
    """One step, `(token [B], h and c of each layer [B, H]) -> (next token or logits, new h and c)`, in TensorFlow's
    operations. Both kernels of a layer are joined, so that it is one product instead of two."""
    import tensorflow as tf

    use_threads(job.threads)

    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            w = job.workload.weights
            self.embedding, self.output_kernel, self.output_bias = (
                tf.Variable(w[name]) for name in ("embedding", "output.kernel", "output.bias")
            )
            self.layers = [
                (
                    tf.Variable(np.concatenate([w[f"lstm.{i}.kernel"], w[f"lstm.{i}.recurrent_kernel"]])),
                    tf.Variable(w[f"lstm.{i}.bias"]),
                )
                for i in range(job.workload.L)
            ]

        def step(self, token: Any, state: list[Any]) -> tuple[Any, list[Any]]:
            logits, state = self.logits(token, state)
            return tf.argmax(logits, axis=1, output_type=tf.int32), state

        def logits(self, token: Any, state: list[Any]) -> tuple[Any, list[Any]]:
            x, new_state = tf.gather(self.embedding, token), []
            for layer, (kernel, bias) in enumerate(self.layers):
                h, c = state[2 * layer : 2 * layer + 2]
                i, f, g, o = tf.split(tf.matmul(tf.concat([x, h], axis=1), kernel) + bias, 4, axis=1)
                c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
                x = tf.sigmoid(o) * tf.tanh(c)
                new_state += [x, c]
            return tf.matmul(x, self.output_kernel) + self.output_bias, new_state

    return Network()


def Runner(job: Job) -> Any:
    return CellRunner(job) if job.form == CELLS else LoopRunner(job)


def _start(job: Job) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    zeros = [tf.zeros([job.batch, job.workload.H])] * (2 * job.workload.L)
    return tf.constant(job.workload.start(job.batch), tf.int32), zeros


class CellRunner(Stepper):
    _token: Any
    _state: Any

    def __init__(self, job: Job) -> None:
        import tensorflow as tf

        self.output, model = job.output, network(job)
        # Not its concrete function, which spares the search for it at each call but took seven times as long.
        self._step = tf.function(model.logits if job.output == "logits" else model.step)
        self._start, self._constant = _start(job), tf.constant
        self.rewind()

    def step(self) -> None:
        self._result, self._state = self._step(self._token, self._state)
        self._token = self._result

    def rewind(self) -> None:
        self._token, self._state = self._start

    def tokens(self) -> list[int]:
        tokens: list[int] = self._token.numpy().tolist()
        return tokens

    def put(self, token: int) -> None:
        self._token = self._constant([token])

    def logits(self) -> NDArray[np.float32]:
        return np.asarray(self._result.numpy()).ravel()


class LoopRunner:
    def __init__(self, job: Job) -> None:
        import tensorflow as tf

        model, steps = network(job), job.steps

        @tf.function(jit_compile=job.form == XLA_LOOP)  # type: ignore[untyped-decorator]
        def decode(token: Any, state: list[Any]) -> tuple[Any, Any, list[Any]]:
            tokens = tf.TensorArray(tf.int32, size=steps)
            for position in tf.range(steps):
                token, state = model.step(token, state)
                tokens = tokens.write(position, token)
            return tokens.stack(), token, state

        self._decode, self._steps, self._start = decode, steps, _start(job)
        self._past = self._start

    def greedy(self, count: int) -> list[list[int]]:
        rows: list[list[int]] = []  # [steps][B]
        self._past = self._start
        while len(rows) < count:
            rows += self._loop().tolist()
        return [list(text) for text in zip(*rows[:count], strict=True)]

    def run(self, count: int) -> None:
        for _ in range(count // self._steps):
            self._loop()

    def _loop(self) -> Any:
        tokens, *self._past = self._decode(*self._past)
        return tokens.numpy()
