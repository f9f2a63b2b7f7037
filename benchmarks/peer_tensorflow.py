# SPDX-License-Identifier: Apache-2.0
"""TensorFlow: a greedy loop of 100 tokens inside one graph, compiled by XLA."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from workloads import FIRST_TOKEN, Workload

if TYPE_CHECKING:
    from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read once, when tensorflow is first imported

NAME = "TensorFlow XLA loop"
MODULES = ("tensorflow",)
LOOP = 100


def network(workload: Workload) -> Any:
    """One step, `(token [B], h and c of each layer [B, H]) -> (next token, new h and c)`, in TensorFlow's operations.

    Both kernels of a layer are joined, so that it is one product instead of two.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            w = {name: tf.Variable(array) for name, array in workload.weights.items()}
            self.embedding, self.output_kernel, self.output_bias = (
                w[name] for name in ("embedding", "output.kernel", "output.bias")
            )
            self.layers = [
                (
                    tf.Variable(tf.concat([w[f"lstm.{i}.kernel"], w[f"lstm.{i}.recurrent_kernel"]], axis=0)),
                    w[f"lstm.{i}.bias"],
                )
                for i in range(workload.L)
            ]

        def step(self, token: Any, state: list[Any]) -> tuple[Any, list[Any]]:
            x, new_state = tf.gather(self.embedding, token), []
            for layer, (kernel, bias) in enumerate(self.layers):
                h, c = state[2 * layer : 2 * layer + 2]
                i, f, g, o = tf.split(tf.matmul(tf.concat([x, h], axis=1), kernel) + bias, 4, axis=1)
                c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
                x = tf.sigmoid(o) * tf.tanh(c)
                new_state += [x, c]
            logits = tf.matmul(x, self.output_kernel) + self.output_bias
            return tf.argmax(logits, axis=1, output_type=tf.int32), new_state

    return Network()


class Runner:
    def __init__(self, workload: Workload, directory: Path) -> None:
        import tensorflow as tf

        model = network(workload)

        @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
        def decode(token: Any, state: list[Any]) -> tuple[Any, Any, list[Any]]:
            tokens = tf.TensorArray(tf.int32, size=LOOP)
            for position in tf.range(LOOP):
                token, state = model.step(token, state)
                tokens = tokens.write(position, token)
            return tokens.stack(), token, state

        self._decode = decode
        self._start = tf.fill([1], FIRST_TOKEN), [tf.zeros([1, workload.H]) for _ in range(2 * workload.L)]
        self._past = self._start

    def tokens(self, count: int) -> list[int]:
        tokens: list[int] = []
        self._past = self._start
        while len(tokens) < count:
            tokens += self._loop()[:, 0].tolist()
        return tokens[:count]

    def run(self, count: int) -> None:
        for _ in range(count // LOOP):
            self._loop()

    def _loop(self) -> Any:
        tokens, *self._past = self._decode(*self._past)
        return tokens.numpy()
