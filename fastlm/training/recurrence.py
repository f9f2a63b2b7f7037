# SPDX-License-Identifier: Apache-2.0
"""The LSTM recurrence for training: the arithmetic of ``keras.layers.LSTM``, half as fast again on a CPU.

Two things make it fast. The input products of all time steps are one matrix product, outside the loop,
and so are the gradients of all three weights: inside the loop only ``h @ recurrent_kernel`` remains, and
its transpose on the way back. And the backward pass is written by hand: it keeps the gates, and runs far
fewer small operations than differentiating the loop gives. What is left is four fifths matrix products,
at TensorFlow's full speed; fusing the rest with XLA was slower. `benchmarks/bench_training.py` measures
it against the other ways TensorFlow has.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import tensorflow as tf

Tensor: TypeAlias = Any  # tensorflow has no type information


def _gates(z: Tensor, units: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, g and o."""
    gates = tf.sigmoid(z)  # one call for all four; a quarter wasted is cheaper than three calls
    g = tf.tanh(z[:, 2 * units : 3 * units])
    return gates[:, :units], gates[:, units : 2 * units], g, gates[:, 3 * units :]


def _back(saved: tuple[Tensor, ...], dh: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradients of a step's h and c those of its gate inputs and of the c before."""
    i, f, g, o, c_before, c_tanh = saved
    dc = dc + dh * o * (1 - c_tanh * c_tanh)
    di, df = dc * g * i * (1 - i), dc * c_before * f * (1 - f)
    dg, do = dc * i * (1 - g * g), dh * c_tanh * o * (1 - o)
    return tf.concat([di, df, dg, do], 1), dc * f


@tf.custom_gradient  # type: ignore[untyped-decorator]
def lstm(
    x: Tensor, keep: Tensor, kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor, h: Tensor, c: Tensor
) -> tuple[Any, Any]:
    """Run an LSTM layer over ``T`` steps of ``B`` sequences (Hochreiter & Schmidhuber 1997, with forget gate).

    Parameters
    ----------
    x : float tensor [T, B, I]
        Inputs, time first. T and B must be known when the graph is built; the loop is unrolled.
    keep : float tensor [T, B, 1]
        1 to carry the state into that step, 0 to start it afresh: both h and c are multiplied by it.
    kernel, recurrent_kernel, bias : float tensors [I, 4H], [H, 4H], [4H]
        Keras' layout: gates in the order i, f, c, o.
    h, c : float tensors [B, H]
        The state before the first step.

    Returns
    -------
    outputs : float tensor [T, B, H]
    h, c : float tensors [B, H]
        The state after the last step.

    Gradients flow to everything but ``keep``.
    """
    steps, batch, inputs = x.shape
    units = recurrent_kernel.shape[0]
    x_flat = tf.reshape(x, [steps * batch, inputs])
    projected = tf.unstack(tf.reshape(tf.matmul(x_flat, kernel) + bias, [steps, batch, 4 * units]))
    keeps = tf.unstack(keep)
    outputs, h_before, saved = [], [], []
    for t in range(steps):
        h, c_before = h * keeps[t], c * keeps[t]
        h_before.append(h)
        i, f, g, o = _gates(projected[t] + tf.matmul(h, recurrent_kernel), units)
        c = f * c_before + i * g
        c_tanh = tf.tanh(c)
        h = o * c_tanh
        outputs.append(h)
        saved.append((i, f, g, o, c_before, c_tanh))

    def gradient(d_outputs: Tensor, dh: Tensor, dc: Tensor) -> tuple[Tensor, ...]:
        # Transposed once: the product in the loop is faster on a matrix that lies the right way round.
        recurrent_transposed = tf.transpose(recurrent_kernel)
        d_output = tf.unstack(d_outputs)
        dz_steps = [None] * steps
        for t in reversed(range(steps)):
            dz, dc = _back(saved[t], dh + d_output[t], dc)
            dz_steps[t] = dz
            dc = dc * keeps[t]
            dh = tf.matmul(dz, recurrent_transposed) * keeps[t]
        dz = tf.concat(dz_steps, 0)
        dx = tf.reshape(tf.matmul(dz, kernel, transpose_b=True), [steps, batch, inputs])
        d_kernel = tf.matmul(x_flat, dz, transpose_a=True)
        d_recurrent = tf.matmul(tf.concat(h_before, 0), dz, transpose_a=True)
        return dx, None, d_kernel, d_recurrent, tf.reduce_sum(dz, 0), dh, dc

    return (tf.stack(outputs), h, c), gradient


@tf.custom_gradient  # type: ignore[untyped-decorator]
def lstm_of_any_length(
    x: Tensor, keep: Tensor, kernel: Tensor, recurrent_kernel: Tensor, bias: Tensor, h: Tensor, c: Tensor
) -> tuple[Any, Any]:
    """`lstm` with T and B that differ from batch to batch: one graph for all, with a loop in it."""
    steps, batch = tf.shape(x)[0], tf.shape(x)[1]
    inputs, units = x.shape[2], recurrent_kernel.shape[0]
    x_flat = tf.reshape(x, [-1, inputs])
    projected = tf.reshape(tf.matmul(x_flat, kernel) + bias, [steps, batch, 4 * units])

    def arrays(count: int) -> tuple[Tensor, ...]:
        return tuple(tf.TensorArray(tf.float32, steps, element_shape=[None, None]) for _ in range(count))

    def forward(t: Tensor, h: Tensor, c: Tensor, kept: tuple[Tensor, ...]) -> tuple[Any, ...]:
        h, c_before = h * keep[t], c * keep[t]
        i, f, g, o = _gates(projected[t] + tf.matmul(h, recurrent_kernel), units)
        c = f * c_before + i * g
        c_tanh = tf.tanh(c)
        values = (h, i, f, g, o, c_before, c_tanh, o * c_tanh)
        return t + 1, values[-1], c, tuple(one.write(t, value) for one, value in zip(kept, values, strict=True))

    _, h, c, kept = tf.while_loop(lambda t, *_: t < steps, forward, (0, h, c, arrays(8)), maximum_iterations=steps)
    h_before, *saved, outputs = (tf.ensure_shape(one.stack(), [None, None, units]) for one in kept)

    def gradient(d_outputs: Tensor, dh: Tensor, dc: Tensor) -> tuple[Tensor, ...]:
        recurrent_transposed = tf.transpose(recurrent_kernel)

        def backward(t: Tensor, dh: Tensor, dc: Tensor, found: Tensor) -> tuple[Tensor, ...]:
            dz, dc = _back(tuple(one[t] for one in saved), dh + d_outputs[t], dc)
            return t - 1, tf.matmul(dz, recurrent_transposed) * keep[t], dc * keep[t], found.write(t, dz)

        _, dh, dc, found = tf.while_loop(
            lambda t, *_: t >= 0, backward, (steps - 1, dh, dc, arrays(1)[0]), maximum_iterations=steps
        )
        dz = tf.reshape(found.stack(), [-1, 4 * units])
        dx = tf.reshape(tf.matmul(dz, kernel, transpose_b=True), [steps, batch, inputs])
        d_kernel = tf.matmul(x_flat, dz, transpose_a=True)
        d_recurrent = tf.matmul(tf.reshape(h_before, [-1, units]), dz, transpose_a=True)
        return dx, None, d_kernel, d_recurrent, tf.reduce_sum(dz, 0), dh, dc

    return (outputs, h, c), gradient
