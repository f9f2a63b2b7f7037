# SPDX-License-Identifier: Apache-2.0
"""What networks of padded texts are made of: named weights, dropout, and layers that read in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fastlm.training.recurrence import Tensor, lstm_of_any_length

NEVER = -1e9  # a score that padding has


class Variables:
    """Weights by the names of `fastlm.weights`, in the order in which they are made; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.named: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name]

    def arrays(self) -> dict[str, Any]:
        """As `fastlm.export` takes them."""
        return {name: variable.numpy() for name, variable in self.named.items()}

    def make(self, name: str, *size: int, limit: float | None = None) -> None:
        """Uniform within the limit, for matrices by Glorot's (2010); a bias starts from zero."""
        if len(size) == 1 and limit is None:
            value = np.zeros(size, np.float32)
        else:
            most = (6 / sum(size)) ** 0.5 if limit is None else limit
            value = self._random.uniform(-most, most, size).astype(np.float32)
        self.named[name] = tf.Variable(value)

    def make_lstm(self, name: str, inputs: int, units: int) -> None:
        self.make(f"{name}.kernel", inputs, 4 * units, limit=units**-0.5)
        self.make(f"{name}.recurrent_kernel", units, 4 * units, limit=units**-0.5)
        bias = np.zeros(4 * units, np.float32)
        bias[units : 2 * units] = 1  # of the forget gate (Jozefowicz et al. 2015)
        self.named[f"{name}.bias"] = tf.Variable(bias)

    def make_stack(self, prefix: str, inputs: int, layers: Sequence[int], bidirectional: bool) -> int:
        """Layers one on top of the other; returns how many values the last one gives."""
        for n, units in enumerate(layers):
            for name in (f"{prefix}.{n}", f"{prefix}.{n}.reverse")[: 1 + bidirectional]:
                self.make_lstm(name, inputs, units)
            inputs = units * (1 + bidirectional)
        return inputs

    def run_lstm(self, name: str, x: Tensor, keep: Tensor, state: Sequence[Tensor] | None = None) -> Any:
        """Outputs [T, B, H], and the last h and c, of one direction."""
        parts = [self.named[f"{name}.{part}"] for part in ("kernel", "recurrent_kernel", "bias")]
        units = parts[1].shape[0]
        h, c = state or [tf.zeros([tf.shape(x)[1], units])] * 2
        return lstm_of_any_length(x, keep, *map(tf.convert_to_tensor, parts), h, c)


class Places:
    """Of texts [S, B] that are padded in front.

    Attributes
    ----------
    real : bool tensor [S, B]
        Whether there is something.
    keep : float tensor [S, B, 1]
        0 where a text begins, else 1.
    turned : int32 tensor [S, B]
        The same places, each text read backwards.
    """

    def __init__(self, texts: Tensor, lengths: Tensor) -> None:
        S = tf.shape(texts)[0]
        first, place = S - lengths, tf.range(S)[:, None]
        self.real = place >= first
        self.keep = tf.cast(place != first, tf.float32)[:, :, None]
        self.turned = tf.where(self.real, S - 1 + first - place, place)


def read_stack(
    variables: Variables, prefix: str, x: Tensor, places: Places, layers: int, bidirectional: bool, drop: Dropout
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The last layer's outputs [S, B, D], and the last h and c of each, its directions side by side."""
    ends = []
    for n in range(layers):
        x = drop(x)
        out, *end = variables.run_lstm(f"{prefix}.{n}", x, places.keep)
        if bidirectional:
            backward, *other = variables.run_lstm(f"{prefix}.{n}.reverse", _at(x, places.turned), places.keep)
            out = tf.concat([out, _at(backward, places.turned)], 2)
            end = [tf.concat(pair, 1) for pair in zip(end, other, strict=True)]
        x = out
        ends.append((end[0], end[1]))
    return x, ends


class Dropout:
    """Stateless: the masks depend on seed, step and place only, so a resumed run draws the same ones.

    Parameters
    ----------
    rate : float
    seed : int64 tensor [2] or None
        (seed, step); None: nothing is dropped.
    """

    def __init__(self, rate: float, seed: Tensor | None) -> None:
        self._rate, self._seed, self._place = rate, seed, 0

    def __call__(self, x: Tensor) -> Tensor:
        if self._seed is None or self._rate == 0:
            return x
        self._place += 1
        return tf.nn.experimental.stateless_dropout(x, self._rate, seed=self._seed * [1, 4096] + [0, self._place])

    def mask(self, size: list[Any]) -> Tensor:
        """What to multiply with."""
        return self(tf.ones(size))


def _at(x: Tensor, places: Tensor) -> Tensor:
    """x [S, B, D] at other places of each sequence, int32 [S, B]."""
    return tf.transpose(tf.gather(tf.transpose(x, [1, 0, 2]), tf.transpose(places), batch_dims=1), [1, 0, 2])
