# SPDX-License-Identifier: Apache-2.0
"""Compare the ways TensorFlow can train an LSTM language model on a CPU, at PTB-medium sizes.

    python benchmarks/bench_training.py [way ...] [--seconds S] [--threads N]

Sizes: 10 000 words, two layers of 650 units, dropout 0.5, 20 streams of 35 tokens. Every way runs in a process of
its own. For each: tokens trained on a second (the median of its steps), time to the first step (tracing and
compiling), the largest error of the recurrence's gradients, relative, against `tf.GradientTape` over plain cells,
and the loss of a small model after 200 steps without dropout from the same weights on the same text: ways that are
right all end at the same loss.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

WAYS = {
    "fastlm": "the recurrence of fastlm.training: products hoisted, gradient written by hand",
    "fastlm-xla": "the same, the whole step compiled by XLA",
    "cells": "plain cells, unrolled and differentiated by GradientTape, in fastlm's step",
    "cells-xla": "the same, the whole step compiled by XLA",
    "block": "tf.raw_ops.BlockLSTMV2 with TensorFlow's gradient, in fastlm's step",
    "keras": "keras.layers.LSTM in model.fit",
    "keras-unroll": "keras.layers.LSTM(unroll=True) in model.fit",
    "keras-xla": "keras.layers.LSTM in model.fit(jit_compile=True)",
}
PTB_MEDIUM = {"vocab_size": 10_000, "units": (650, 650), "embedding": 650, "dropout": 0.5}
SMALL = {"vocab_size": 50, "units": (24, 24), "embedding": 16, "dropout": 0.0}
RATE = 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training at PTB-medium sizes.")
    parser.add_argument("ways", nargs="*", metavar="way", help=f"default: all of {' '.join(WAYS)}")
    parser.add_argument("--seconds", type=float, default=20, help="of timed steps for every way (default: 20)")
    parser.add_argument("--threads", type=int, default=0, help="TensorFlow's threads (default: one a core)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.ways) - set(WAYS):
        parser.error(f"unknown way {', '.join(unknown)}; there are {', '.join(WAYS)}")
    if arguments.one:
        print(json.dumps(measure(arguments.ways[0], arguments.seconds, arguments.threads)))
        return
    print(f"{'way':<13} {'tokens/s':>9} {'first step':>11} {'gradient error':>15} {'loss':>8}")
    for way in arguments.ways or WAYS:
        command = [sys.executable, __file__, "--one", way, f"--seconds={arguments.seconds}"]
        command.append(f"--threads={arguments.threads}")
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        )
        if done.returncode:
            sys.exit(done.returncode)
        got = json.loads(done.stdout.splitlines()[-1])
        error = "" if got["error"] is None else f"{got['error']:.1e}"
        print(f"{way:<13} {got['rate']:>9,.0f} {got['first']:>9.1f} s {error:>15} {got['loss']:>8.4f}", flush=True)


def measure(way: str, seconds: float, threads: int) -> dict[str, Any]:
    """All figures of one way."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    recurrence = None if way.startswith("keras") else _recurrence(way.removesuffix("-xla"))
    small = _small_text()
    step = _step(way, recurrence, SMALL, 8, 20)
    loss = statistics.fmean([step(*next(small)) for _ in range(200)][-20:])
    step = _step(way, recurrence, PTB_MEDIUM, 20, 35)
    text = _random_text(PTB_MEDIUM["vocab_size"], 20, 35)
    began = time.perf_counter()
    step(*next(text))
    first = time.perf_counter() - began
    step(*next(text))
    times: list[float] = []
    while sum(times) < seconds:
        began = time.perf_counter()
        step(*next(text))
        times.append(time.perf_counter() - began)
    error = None if recurrence is None else _gradient_error(recurrence)
    return {"rate": 20 * 35 / statistics.median(times), "first": first, "error": error, "loss": loss}


Step = Callable[[Any, Any], float]  # inputs and targets, int32 [T, B] → loss


def _step(way: str, recurrence: Any, sizes: dict[str, Any], batch: int, steps: int) -> Step:
    from fastlm.training import build_model

    model = build_model(**sizes, seed=0)
    if recurrence is None:
        return _keras_step(model, way.removeprefix("keras").removeprefix("-"), sizes, batch, steps)
    return _fastlm_step(model, recurrence, way.endswith("-xla"), batch, steps)


def _fastlm_step(model: Any, recurrence: Any, xla: bool, batch: int, steps: int) -> Step:
    """One step as `fastlm.training.trainer` takes it, with another recurrence."""
    import tensorflow as tf

    import fastlm.training.network as network_module
    from fastlm.training.optimizer import Adam

    network_module.lstm = recurrence
    network = network_module.Network(model)
    adam, keep, state = Adam(network.variables), tf.ones([steps, batch, 1]), network.zero_state(batch)

    @tf.function(jit_compile=xla)
    def update(inputs: Any, targets: Any, seed: Any, number: Any) -> Any:
        with tf.GradientTape() as tape:
            logits, _ = network(inputs, keep, state, seed)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.reshape(targets, [-1]), logits=logits)
            loss = tf.reduce_mean(losses)
        adam.apply(tape.gradient(loss, network.variables), tf.constant(RATE), number)
        return loss

    done = 0

    def step(inputs: Any, targets: Any) -> float:
        nonlocal done
        done += 1
        return float(update(inputs, targets, tf.constant([0, done], tf.int64), tf.constant(done - 1.0)))

    return step


def _keras_step(model: Any, kind: str, sizes: dict[str, Any], batch: int, steps: int) -> Step:
    """`model.train_on_batch`, which is what `model.fit` does with a batch, with the same optimizer settings."""
    import keras
    import numpy as np

    if kind == "unroll":  # needs to know the number of steps; the weights are the same
        x = ids = keras.Input((steps,), batch_size=batch, dtype="int32")
        for layer in model.layers[1:]:
            config = layer.get_config() | ({"unroll": True} if isinstance(layer, keras.layers.LSTM) else {})
            x = type(layer).from_config(config)(x)
        unrolled = keras.Model(ids, x)
        unrolled.set_weights(model.get_weights())
        model = unrolled
    optimizer = keras.optimizers.Adam(RATE, epsilon=1e-8, global_clipnorm=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=kind == "xla")

    def step(inputs: Any, targets: Any) -> float:
        model.reset_metrics()
        return float(model.train_on_batch(np.ascontiguousarray(inputs.T), np.ascontiguousarray(targets.T)))

    return step


def _recurrence(way: str) -> Any:
    """A function like `fastlm.training.recurrence.lstm`, but for what `keep` does."""
    import tensorflow as tf

    from fastlm.training.recurrence import lstm

    def cells(x: Any, keep: Any, kernel: Any, recurrent_kernel: Any, bias: Any, h: Any, c: Any) -> Any:
        outputs = []
        for t in range(x.shape[0]):
            i, f, g, o = tf.split(x[t] @ kernel + h @ recurrent_kernel + bias, 4, 1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
            outputs.append(h)
        return tf.stack(outputs), h, c

    def block(x: Any, keep: Any, kernel: Any, recurrent_kernel: Any, bias: Any, h: Any, c: Any) -> Any:
        peephole = tf.zeros(h.shape[-1:], x.dtype)
        out = tf.raw_ops.BlockLSTMV2(
            seq_len_max=tf.constant(x.shape[0], tf.int64),
            x=x,
            cs_prev=c,
            h_prev=h,
            w=tf.concat([kernel, recurrent_kernel], 0),
            wci=peephole,
            wcf=peephole,
            wco=peephole,
            b=bias,
            cell_clip=0.0,
            use_peephole=False,
        )
        return out.h, out.h[-1], out.cs[-1]

    return {"fastlm": lstm, "cells": cells, "block": block}[way]


def _gradient_error(recurrence: Any) -> float:
    """Largest relative error over the gradients of x, kernel, recurrent kernel and bias, in float32."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shapes = [(20, 4, 16), (16, 48), (12, 48), (48,)]
    values = [tf.constant(rng.normal(size=s) * 0.5, tf.float32) for s in shapes]
    keep, zero = tf.ones((20, 4, 1)), tf.zeros((4, 12))
    gradients = []
    for function in (recurrence, _recurrence("cells")):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = tf.reduce_sum(function(values[0], keep, *values[1:], zero, zero)[0] ** 2)
        gradients.append(tape.gradient(loss, values))
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*gradients, strict=True))


def _random_text(vocab_size: int, batch: int, steps: int) -> Iterator[tuple[Any, Any]]:
    import numpy as np

    rng = np.random.default_rng(0)
    while True:
        tokens = rng.integers(0, vocab_size, (steps + 1, batch), dtype=np.int32)
        yield tokens[:-1], tokens[1:]


def _small_text() -> Iterator[tuple[Any, Any]]:
    """Windows of a sequence that an LSTM can learn: each token follows from the two before it, nine times in ten."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = list(rng.integers(0, 50, 2))
    for _ in range(20_000):
        tokens.append((tokens[-1] + 7 * (tokens[-2] % 3) + 1) % 50 if rng.random() < 0.9 else rng.integers(0, 50))
    ids = np.array(tokens, np.int32)
    while True:
        starts = rng.integers(0, len(ids) - 21, 8)
        windows = ids[starts[None, :] + np.arange(21)[:, None]]
        yield windows[:-1], windows[1:]


if __name__ == "__main__":
    main()
