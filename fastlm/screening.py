# SPDX-License-Identifier: Apache-2.0
"""Screens of output matrices: what proves of most rows that they lose, from a bit or two of each weight.
docs/screening.md has the method and the proof, docs/format.md the bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm.rounding import Array

Float64 = npt.NDArray[np.float64]

LARGEST_INPUTS = 4096
"""Inputs of a row: so many sums of tables fit 16 bits."""

PANEL = 16
"""Rows that are computed together when one of them cannot be ruled out; directions come in as many."""

_MIX = 0.125  # MIX in csrc/screen.c
_TABLE_MOST = 31  # FL_TABLE_MOST
_LEAST_SPREAD = 0.3 / 127  # of an input: that of rounding to a step of hidden states
_ROWS = 1024  # at a time: they stay in a processor's cache
_TURNS = 2  # more change nothing
_SWEEPS = 2  # through the signs of a row: the first leaves 5 to 7 % less, the second 2, a third 1

_CHOICES = [(1, 16), (1, 32), (1, 64), (1, 128), (2, 32), (2, 64), (2, 128), (3, 128)]
TRIED = 256  # states on which they are compared,
_PANELS_TRIED = 192  # and panels

# What reading a matrix costs per weight, int8 = 1, and looking up a bit: on AVX2 and on AVX-512 between 0.15 and 0.2.
_COST = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.6}
_BIT_COST = 0.2
_ROW_COST = 32.0  # bounds, in weights
_WORTH = 0.8  # of the whole matrix's cost
_LARGEST_WEIGHT = 2.0**20  # beyond any trained model's: what is derived from weights stays within a file's limits


@dataclass(frozen=True)
class Screen:
    """What a file holds of a screen, row by row.

    Attributes
    ----------
    mean, spread, gain : float32 [K]
        Of the inputs their mean, what makes them and their weights alike in size, and the size of the weights.
    basis : float32 [n, K]
        Orthonormal directions that tell most of (inputs - mean) · spread and of rows / spread.
    along : int8 [V, n]
        What the signs leave of a row, along the directions, in steps of ``along_scale``.
    along_scale, shift, radius : float32 [V]
        ``shift`` is the bias and the product with the mean; ``radius`` bounds what neither signs nor directions tell.
    size : float32 [planes, V]
    signs : bool [planes, V, K]
        A row's approximation is the sum over the planes of ± size · gain, plus where the sign is set.
    """

    mean: Array
    spread: Array
    gain: Array
    basis: Array
    along: npt.NDArray[np.int8]
    along_scale: Array
    shift: Array
    radius: Array
    size: Array
    signs: npt.NDArray[np.bool_]

    def bounds(self, states: Array) -> tuple[Float64, Float64]:
        """Lower and upper bounds of the logits, float64 [N, V], of inputs [N, K]; as the engine's, but for rounding."""
        away = states.astype(np.float64) - self.mean
        standard = away * self.spread
        exact = standard @ self.basis.T.astype(np.float64)
        step = np.abs(exact).max(axis=1, keepdims=True) / 127
        found = np.rint(exact / np.where(step, step, 1)) * step
        scaled = away * self.gain
        middle = self.shift + found @ (self.along * self.along_scale[:, None].astype(np.float64)).T
        for size, signs in zip(self.size, self.signs, strict=True):
            middle += scaled @ np.where(signs, 1.0, -1.0).T * size
        fours = np.pad(np.abs(scaled), ((0, 0), (0, -scaled.shape[1] % 4))).reshape(len(states), -1, 4).sum(axis=2)
        table_error = fours.max(axis=1) / _TABLE_MOST * 0.5 * fours.shape[1]
        rest = np.square(standard).sum(axis=1) - 2 * (exact * found).sum(axis=1) + np.square(found).sum(axis=1)
        errors = _MIX**2 * np.square(found).sum(axis=1) + np.square(exact - found).sum(axis=1) / _MIX**2
        distance = np.sqrt(rest.clip(0) + errors)
        error = np.outer(distance, self.radius) + np.outer(table_error, self.size.sum(axis=0))
        return middle - error, middle + error


@dataclass(frozen=True)
class Directions:
    """What a screen takes of its inputs: ``mean`` and ``spread``, float32 [K], and ``basis``, float32 [n, K]."""

    mean: Array
    spread: Array
    basis: Array


@dataclass(frozen=True)
class Statistics:
    """Of a matrix: ``mean`` of its inputs, float64 [K], and moments about zero of inputs less that and of rows, float64
    [K, K]."""

    mean: Float64
    inputs: Float64
    rows: Float64

    @classmethod
    def of(cls, rows: Array, states: Array) -> Statistics:
        x = states.astype(np.float64)
        mean = x.mean(axis=0).astype(np.float32).astype(np.float64)
        parts = (rows[at : at + _ROWS].astype(np.float64) for at in range(0, len(rows), _ROWS))
        return cls(mean, (x - mean).T @ (x - mean) / len(x), sum(part.T @ part for part in parts) / len(rows))

    def directions(self, count: int) -> Directions:
        """So many, a multiple of 16 (with fewer inputs the rest are zero), and a spread, that leave as little as
        possible of rows and of inputs. What is left is bounded by the product of the norms of both (rows / spread,
        inputs * spread), so directions count as much as they take of either, and an input's spread makes its two
        shares alike. Each depends on the other: found in turns."""
        spread, basis = self._first
        for turn in range(_TURNS):
            kept = basis[:, :count]
            off = np.eye(len(self.mean)) - kept @ kept.T
            inputs, rows = (off @ moments @ off for moments in self._standard(spread))
            if turn == _TURNS - 1:
                break
            spread = _alike(np.sqrt(np.diag(inputs).clip(0)) / spread, np.sqrt(np.diag(rows).clip(0)) * spread)
            basis = _leading(*self._standard(spread), np.trace(inputs), np.trace(rows))
        padded = np.zeros((count, len(self.mean)), np.float32)
        padded[: kept.shape[1]] = kept.T
        return Directions(self.mean.astype(np.float32), spread.astype(np.float32), padded)

    @cached_property
    def _first(self) -> tuple[Float64, Float64]:
        """Spread and all directions before any is taken away."""
        spread = _alike(np.sqrt(np.diag(self.inputs)), np.sqrt(np.diag(self.rows)))
        inputs, rows = self._standard(spread)
        return spread, _leading(inputs, rows, np.trace(inputs), np.trace(rows))

    def _standard(self, spread: Float64) -> tuple[Float64, Float64]:
        return self.inputs * np.outer(spread, spread), self.rows / np.outer(spread, spread)


def _alike(inputs: Float64, rows: Float64) -> Float64:
    """The spread that makes deviations of inputs and rows alike; the largest is 1, and all are as float32 has them."""
    spread = np.sqrt((rows + 1e-6 * (rows.max() or 1)) / np.maximum(inputs, _LEAST_SPREAD))
    return np.asarray((spread / spread.max()).astype(np.float32), np.float64)


def _leading(inputs: Float64, rows: Float64, of_inputs: float, of_rows: float) -> Float64:
    """[K, K]: directions in columns, in falling order of their share of both moments."""
    return np.asarray(np.linalg.eigh(inputs / (of_inputs or 1) + rows / (of_rows or 1))[1][:, ::-1])


def make_screen(
    rows: Array, bias: Array, directions: Directions, planes: int, progress: Callable[[str], None] = lambda _: None
) -> Screen:
    """The screen of an output matrix.

    Parameters
    ----------
    rows : float32 [V, K]
        As the engine computes with them.
    bias : float32 [V]
    directions : Directions
    planes : int
        Signs of each weight.
    progress : callable
        Is told what is being done.
    """
    mean, spread, basis = directions.mean, directions.spread, directions.basis
    P = basis.astype(np.float64)
    gain = _gain(rows, spread, P)
    part = _Rows(mean, spread, gain, P, planes)
    found = []
    for at in range(0, len(rows), _ROWS):
        progress(f"screen: row {at:,} of {len(rows):,}")
        found.append(part.screen(rows[at : at + _ROWS].astype(np.float64), bias[at : at + _ROWS]))
    along, scale, shift, radius = (np.concatenate([one[i] for one in found]) for i in range(4))
    size, signs = (np.concatenate([one[i] for one in found], axis=1) for i in (4, 5))
    return Screen(mean, spread, gain, basis, along, scale, shift, radius, size, signs)


def _gain(rows: Array, spread: Array, basis: Float64) -> Array:
    """Mean size, input by input, of what the directions leave of the weights; the largest is 1."""
    total = np.zeros(rows.shape[1])
    for at in range(0, len(rows), _ROWS):
        scaled = rows[at : at + _ROWS] / spread.astype(np.float64)
        total += np.abs((scaled - scaled @ basis.T @ basis) * spread).sum(axis=0)
    return np.asarray(total / (total.max() or 1), np.float32)


@dataclass(frozen=True)
class _Rows:
    """Makes some rows of a screen."""

    mean: Array
    spread: Array
    gain: Array
    basis: Float64
    planes: int

    def screen(self, rows: Float64, bias: Array) -> tuple[npt.NDArray[Any], ...]:
        spread, gain, P = self.spread.astype(np.float64), self.gain.astype(np.float64), self.basis
        size, signs = self._signs(rows / spread)
        approximation = sum(
            s[:, None] * np.where(b, gain, -gain) for s, b in zip(size.astype(np.float64), signs, strict=True)
        )
        rest = (rows - approximation) / spread
        exact = rest @ P.T
        scale = np.asarray(np.abs(exact).max(axis=1, initial=0) / 127, np.float32)
        steps = np.where(scale < 2.0**-100, 1, scale).astype(np.float64)[:, None]
        along = np.where(scale[:, None] < 2.0**-100, 0, np.rint(exact / steps)).clip(-127, 127).astype(np.int8)
        scale = np.where(scale < 2.0**-100, np.float32(0), scale)
        found = along * scale[:, None].astype(np.float64)
        off = rest - exact @ P
        norm = np.linalg.norm
        kept = norm(exact, axis=1)
        magnitude = (
            norm(rows, axis=1)
            + norm(rest, axis=1)
            + kept
            + norm(found, axis=1)
            + size.sum(axis=0, dtype=np.float64) * norm(gain / spread)
        )
        rounding = (rows.shape[1] + 8) * 2.0**-23
        radius = np.sqrt(
            np.square(off).sum(axis=1)
            + np.square(off @ P.T + exact - found).sum(axis=1) / _MIX**2
            + np.square(_MIX * kept)
            + rounding * np.square(magnitude)
        )
        shift = bias + rows @ self.mean.astype(np.float64)
        return along, scale, shift.astype(np.float32), (radius * (1 + 2.0**-20)).astype(np.float32), size, signs

    def _signs(self, scaled: Float64) -> tuple[Array, npt.NDArray[np.bool_]]:
        """The signs of what the directions leave, plane after plane of what is left then."""
        P, unit = self.basis, self.gain / self.spread.astype(np.float64)
        off = np.eye(len(unit)) - P.T @ P
        left = scaled @ off
        sizes, planes = [], []
        for _ in range(self.planes):
            signs = np.where(left >= 0, 1.0, -1.0)
            size = _fit(left, signs * unit @ off)
            for _ in range(_SWEEPS):
                _improve(signs, left - size[:, None] * (signs * unit @ off), size, unit, off)
                size = _fit(left, signs * unit @ off)
            size = size.astype(np.float32).astype(np.float64)
            left -= size[:, None] * (signs * unit @ off)
            sizes.append(size.astype(np.float32))
            planes.append(signs > 0)
        return np.array(sizes), np.array(planes)


def _fit(left: Float64, each: Float64) -> Float64:
    """The sizes with the least squared error."""
    square = np.square(each).sum(axis=1)
    return np.asarray((np.einsum("vk,vk->v", left, each) / np.where(square, square, 1)).clip(0))


def _improve(signs: Float64, rest: Float64, size: Float64, unit: Float64, off: Float64) -> None:
    """Turns signs, one input after the other, where this leaves less outside the directions; what lies along them is
    told exactly. ``signs`` and ``rest`` are changed."""
    for k in range(len(unit)):
        step = 2 * size * unit[k] * signs[:, k]
        turned = np.flatnonzero(2 * step * rest[:, k] + step * step * off[k, k] < 0)
        rest[turned] += np.outer(step[turned], off[k])
        signs[turned, k] *= -1


# ---- which one ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What a screen leaves on some inputs of its matrix: float64 [N, V] bounds and logits."""

    lower: Float64
    upper: Float64
    logits: Float64

    @classmethod
    def of(cls, screen: Screen, rows: Array, bias: Array, states: Array) -> Trial:
        return cls(*screen.bounds(states), states.astype(np.float64) @ rows.T.astype(np.float64) + bias)

    def left(self, seed: int | None = None) -> npt.NDArray[np.bool_]:
        """[N, V]: rows that cannot be ruled out by the row of the best lower bound, of greedy choices, or of draws at
        temperature 1 with this seed."""
        noise = 0.0 if seed is None else np.random.default_rng(seed).gumbel(size=self.logits.shape)
        best = (self.lower + noise).argmax(axis=1)[:, None]
        return np.asarray(self.upper + noise >= np.take_along_axis(self.logits + noise, best, axis=1))


def cost(screen: Screen, dtype: str, share: float, count: int) -> float:
    """Of a token, as a share of what a whole int8 matrix of ``count`` rows costs, when such a share of its panels is
    finished."""
    n, K = screen.basis.shape
    prepared = (4 * n + 16) / count  # the directions' product, in float32, and the tables
    return float(len(screen.size) * _BIT_COST + (n + _ROW_COST) / K + prepared + share * _COST[dtype])


@dataclass(frozen=True)
class _Sample:
    """Panels of a matrix, evenly spread, and inputs, on which screens are compared; a screen of these rows is made in
    a fraction of the time.

    ``bars``, float64 [2, N, 1], are what a row of the whole matrix must reach: the best logit, for greedy choices, and
    the best key of a draw, whose distribution is that of log(Σ exp(logit)) and the noise of one row.
    """

    rows: Array
    bias: Array
    states: Array
    bars: Float64

    @classmethod
    def of(cls, rows: Array, bias: Array, states: Array) -> _Sample:
        logits = states.astype(np.float64) @ rows.T.astype(np.float64) + bias
        noise = np.random.default_rng(0).gumbel(size=len(states))
        bars = np.stack([logits.max(axis=1), np.logaddexp.reduce(logits, axis=1) + noise])
        panels = -(-len(rows) // PANEL)
        some = np.unique(np.linspace(0, panels - 1, min(panels, _PANELS_TRIED)).astype(int))
        chosen = (some[:, None] * PANEL + np.arange(PANEL)).ravel()
        chosen = chosen[chosen < len(rows)]
        return cls(rows[chosen], bias[chosen], states, bars[:, :, None])

    def share_left(self, screen: Screen) -> float:
        """The mean share of panels that a screen of these rows leaves, of both kinds."""
        _, upper = screen.bounds(self.states)
        noise = np.random.default_rng(1).gumbel(size=upper.shape)
        left = np.concatenate([upper >= self.bars[0], upper + noise >= self.bars[1]])
        panels = np.pad(left, ((0, 0), (0, -left.shape[1] % PANEL))).reshape(len(left), -1, PANEL)
        return float(panels.any(axis=2).mean())


def best_screen(
    rows: Array, bias: Array, dtype: str, states: Array, progress: Callable[[str], None] = lambda _: None
) -> Screen | None:
    """The screen of an output matrix that promises to save most, or None if none saves a fifth of its cost.

    Parameters
    ----------
    rows, bias : float32 [V, K], [V]
    dtype : str
        In which the matrix is stored.
    states : float32 [N, K]
        Its inputs on text, in the order of the text.
    progress : callable
        Is told what is being done.
    """
    if rows.shape[1] > LARGEST_INPUTS or max(np.abs(rows).max(), np.abs(bias).max()) > _LARGEST_WEIGHT:
        return None
    progress("screen: moments of rows and states")
    statistics, tried = Statistics.of(rows, states[::2]), states[1::2][:: max(1, len(states) // 2 // TRIED)]
    sample = _Sample.of(rows, bias, tried)
    directions = lru_cache(maxsize=None)(statistics.directions)
    best, least = None, _WORTH * _COST[dtype]
    for planes, count in _CHOICES:
        if planes * _BIT_COST + (count + _ROW_COST) / rows.shape[1] >= least:
            continue
        progress(f"screen: {planes} bit{'s' * (planes > 1)} a weight, {count} directions, tried on some rows")
        screen = make_screen(sample.rows, sample.bias, directions(count), planes)
        found = cost(screen, dtype, sample.share_left(screen), len(rows))
        if found < least:
            best, least = (planes, count), found
    if best is None:
        return None
    return make_screen(rows, bias, directions(best[1]), best[0], progress)
