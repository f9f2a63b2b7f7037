# SPDX-License-Identifier: Apache-2.0
"""The fast recurrence, the optimizer and the network against plain TensorFlow and Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fastlm.training import TiedDense, build_model
from fastlm.training.network import Network
from fastlm.training.optimizer import Adam
from fastlm.training.recurrence import lstm


def plain_lstm(x, keep, kernel, recurrent_kernel, bias, h, c):
    """The definition, one cell after the other, for GradientTape to differentiate."""
    outputs = []
    for t in range(x.shape[0]):
        h, c = h * keep[t], c * keep[t]
        i, f, g, o = tf.split(x[t] @ kernel + h @ recurrent_kernel + bias, 4, 1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        outputs.append(h)
    return tf.stack(outputs), h, c


def arguments(steps, batch, inputs, units, seed):
    """Random arguments in float64; a fifth of the states start afresh."""
    rng = np.random.default_rng(seed)
    shapes = [(inputs, 4 * units), (units, 4 * units), (4 * units,), (batch, units), (batch, units)]
    keep = (rng.random((steps, batch, 1)) > 0.2).astype(np.float64)
    tensors = [rng.normal(size=(steps, batch, inputs)), keep, *(rng.normal(size=s) * 0.7 for s in shapes)]
    return [tf.constant(t) for t in tensors]


@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "units"), [(1, 1, 1, 1), (2, 3, 4, 5), (7, 2, 5, 3), (20, 4, 16, 17)]
)
def test_every_gradient_equals_gradient_tape_over_plain_cells(steps, batch, inputs, units):
    values = arguments(steps, batch, inputs, units, seed=steps)
    rng = np.random.default_rng(1)
    weigh = [tf.constant(rng.normal(size=s)) for s in ((steps, batch, units), (batch, units), (batch, units))]
    outputs, gradients = [], []
    for function in (lstm, plain_lstm):
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs.append(function(*values))
            # Outputs and both last states reach the loss, each element with a weight of its own.
            loss = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(outputs[-1], weigh, strict=True)])
        gradients.append(tape.gradient(loss, [v for n, v in enumerate(values) if n != 1]))
    for ours, plain in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-13)
    names = ["x", "kernel", "recurrent_kernel", "bias", "h", "c"]
    for name, ours, plain in zip(names, *gradients, strict=True):
        scale = np.abs(plain).max()
        np.testing.assert_allclose(ours / scale, plain / scale, rtol=0, atol=1e-12, err_msg=name)


def test_keep_zero_forgets_what_was_before():
    x, keep, *weights, h, c = arguments(6, 2, 3, 4, seed=0)
    keep = tf.concat([tf.ones_like(keep[:3]), tf.zeros_like(keep[:1]), tf.ones_like(keep[:2])], 0)
    whole, *_ = lstm(x, keep, *weights, h, c)
    alone, *_ = lstm(x[3:], tf.ones_like(keep[3:]), *weights, tf.zeros_like(h), tf.zeros_like(c))
    np.testing.assert_array_equal(whole[3:], alone)


@pytest.mark.parametrize("tied", [False, True])
def test_network_equals_the_keras_model(tied):
    model = build_model(50, [24, 16], 16, tied=tied, dropout=0.5, seed=1)
    ids = np.random.default_rng(0).integers(0, 50, (3, 12)).astype(np.int32)
    network = Network(model)
    logits, _ = network(tf.transpose(ids), tf.ones((12, 3, 1)), network.zero_state(3))
    expected = model(ids, training=False)
    np.testing.assert_allclose(tf.transpose(tf.reshape(logits, (12, 3, 50)), [1, 0, 2]), expected, rtol=0, atol=1e-6)


def test_network_carries_the_state_from_window_to_window():
    network = Network(build_model(50, [8], 8, seed=1))
    ids = tf.constant(np.random.default_rng(0).integers(0, 50, (10, 2)))
    keep = tf.ones((10, 2, 1))
    whole, _ = network(ids, keep, network.zero_state(2))
    first, state = network(ids[:4], keep[:4], network.zero_state(2))
    second, _ = network(ids[4:], keep[4:], state)
    np.testing.assert_allclose(tf.concat([first, second], 0), whole, rtol=0, atol=1e-6)


def test_dropout_is_drawn_from_seed_and_step_alone():
    network = Network(build_model(50, [8], 8, dropout=0.5, seed=1))
    ids, keep, state = tf.zeros((10, 2), tf.int32), tf.ones((10, 2, 1)), network.zero_state(2)
    one, again, other = (network(ids, keep, state, tf.constant([0, n], tf.int64))[0].numpy() for n in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.001


def test_adam_equals_keras_adam_with_clipping():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    ours, theirs = tf.Variable(start), keras.Variable(start)
    adam = Adam([ours], clip=1.0)
    reference = keras.optimizers.Adam(0.01, epsilon=1e-8, global_clipnorm=1.0)
    for step in range(5):
        gradient = tf.constant(rng.normal(size=(5, 3)).astype(np.float32))
        adam.apply([gradient], tf.constant(0.01), tf.constant(float(step)))
        reference.apply([gradient], [theirs])
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-6)


def test_tied_dense_survives_saving(tmp_path):
    model = build_model(40, [12, 8], 8, tied=True, seed=2)
    model.layers[-1].bias.assign(np.arange(40, dtype=np.float32))
    ids = np.arange(10)[None]
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(ids), loaded(ids))
    assert isinstance(loaded.layers[-1], TiedDense)
    assert loaded.layers[-1].embedding is loaded.layers[1], "the matrix is shared, not copied"
    assert loaded.count_params() == model.count_params()


def test_same_seed_gives_the_same_model_and_layers_differ():
    one, again, other = (build_model(40, [8, 8], 8, seed=s).get_weights() for s in (0, 0, 1))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[1], one[4])


def test_tied_sizes_must_agree():
    with pytest.raises(ValueError, match="the embedding has 8, the layer before the output 12"):
        build_model(40, [12], 8, tied=True)
