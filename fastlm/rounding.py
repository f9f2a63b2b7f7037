# SPDX-License-Identifier: Apache-2.0
"""Weights in fewer bits: rows of float32 to bf16, int8 and int4 and back. docs/format.md describes the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

BITS = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4}
"""The types of weights, and what a weight takes of memory in each (int4 adds a byte for 32 weights)."""

RUN = {"f32": 1, "bf16": 2, "int8": 4, "int4": 4}
"""Elements of one row that lie side by side in a file; a row is filled up with zeros to a multiple of them."""

BLOCK = {"f32": 1, "bf16": 2, "int8": 4, "int4": 8}
"""Inputs of a row that they hold."""

LARGEST_INPUTS = {"int8": 131072, "int4": 16384}
"""Inputs of a row whose sum surely fits 32 bits: 131072 · 127 · 127; with a group's factor, 16384 · 127 · 8 · 128."""

GROUP = 32
"""int4: neighbouring weights of a row that share a factor."""

# int4: what the largest weight of a group may become, with either sign. Beyond -8 it is cut, which pays where the rest
# gains more by the finer step; 7 is the least because it exists with both signs. More and wider ones gain nothing.
_PEAKS = [sign * peak for peak in (8.0, 7.0, 7.5, 8.5, 9.0) for sign in (-1, 1)]

SMALLEST_SCALE = 2.0**-100
"""Rows with a smaller one are zero, so that no quotient overflows."""

_ROWS = 2048  # rounded at a time: the arrays of a group stay in a processor's cache

# Added to the mean square of every input, as a share of the average, so that the feedback does not trust a few
# thousand tokens too far. It matters little: on the bundled model 0.003 to 0.3 are within 0.2 % of perplexity, which
# is noise, and lose 1.1 to 1.3 %; no feedback loses 2.8 %.
_DAMPING = 0.1


@dataclass(frozen=True)
class RoundedRows:
    """Rows of weights as a file holds them, one behind the other.

    Attributes
    ----------
    dtype : str
        One of `BITS`.
    weight : array
        f32: float32 [rows, K]. bf16: uint16 [rows, 2 ⌈K/2⌉], the upper halves of float32. int8: int8
        [rows, 4 ⌈K/4⌉]. int4: int8 [rows, 4 ⌈K/8⌉], two values a byte.
    scale : float32 [rows], optional
        int8 and int4: what a row's whole numbers are multiplied by.
    group : int8 [rows, 2 ⌈K/64⌉], optional
        int4: the factor of each 32 weights.
    """

    dtype: str
    weight: npt.NDArray[Any]
    scale: Array | None = None
    group: npt.NDArray[np.int8] | None = None

    def to_float(self, inputs: int) -> Array:
        """The weights that the engine computes with, float32 [rows, inputs]. A product of whole numbers and the
        scale is rounded once."""
        if self.dtype == "f32":
            return np.asarray(self.weight[:, :inputs], np.float32)
        if self.dtype == "bf16":
            return (self.weight[:, :inputs].astype(np.uint32) << 16).view(np.float32)
        assert self.scale is not None
        values = self.weight if self.group is None else _unpack_nibbles(self.weight)
        whole = values[:, :inputs].astype(np.float32)
        if self.group is not None:
            whole *= np.repeat(self.group, GROUP, axis=1)[:, :inputs]
        return np.asarray(whole * self.scale[:, None])


def round_rows(rows: Array, dtype: str, moments: npt.NDArray[np.float64] | None = None) -> RoundedRows:
    """Rounds weights, row by row.

    bf16 keeps the upper half of a float32, to nearest, ties to even. int8 takes steps of a row's largest weight / 127.
    int4 takes, for every 32 weights, the signed factor with the least squared error among those that put the
    largest weight somewhere from 7 to 9 (values are cut at -8 and 7), as llama.cpp's ``Q4_0`` and its successors do;
    the factors of a row are themselves whole numbers of at most 127 steps. With the moments of the inputs, the weights
    of a row are rounded in turn, and those to come make good, as far as inputs go together, what the rounding did to
    the row's sum (GPTQ: Frantar et al. 2022, arXiv:2210.17323).

    Parameters
    ----------
    rows : float32 [rows, K]
        Finite.
    dtype : str
        One of `BITS`.
    moments : float64 [K, K], optional
        int4: mean of the products of two inputs, x · xᵀ, on text. Other types do not need it.

    Returns
    -------
    RoundedRows

    Examples
    --------
    >>> import numpy as np
    >>> from fastlm.rounding import round_rows
    >>> round_rows(np.array([[0.5, -1.0, 0.26]], np.float32), "int8").weight
    array([[  64, -127,   33,    0]], dtype=int8)
    """
    if dtype == "f32":
        return RoundedRows(dtype, rows)
    if dtype == "bf16":
        bits = _filled(rows, RUN[dtype]).view(np.uint32)
        return RoundedRows(dtype, ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))
    if dtype == "int8":
        scale = _row_scale(rows, 127)
        steps = np.rint(rows / _safe(scale)[:, None]).clip(-127, 127)
        return RoundedRows(dtype, _filled(steps, RUN[dtype]).astype(np.int8), scale)
    return _round_int4(rows, moments)


def _filled(rows: npt.NDArray[Any], multiple: int) -> npt.NDArray[Any]:
    """Zeros behind each row, up to a multiple."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % multiple)))


def _row_scale(rows: Array, steps: int) -> Array:
    scale = np.abs(rows).max(axis=1) / np.float32(steps)
    return np.asarray(np.where(scale < SMALLEST_SCALE, np.float32(0), scale))


def _safe(divisor: Array) -> Array:
    """One for zero: what is divided is zero too."""
    return np.where(divisor == 0, np.float32(1), divisor)


# ---- int4 --------------------------------------------------------------------------------------------


def _round_int4(rows: Array, moments: npt.NDArray[np.float64] | None) -> RoundedRows:
    count, inputs = rows.shape
    padded = inputs + -inputs % (2 * GROUP)  # an even number of groups
    feedback = None if moments is None else _feedback(moments, padded)
    scale = _row_scale(rows, 7 * 127)
    values = np.empty((count, padded), np.int8)
    group = np.empty((count, padded // GROUP), np.int8)
    for at in range(0, count, _ROWS):
        part = slice(at, at + _ROWS)
        columns = np.ascontiguousarray(_filled(rows[part], 2 * GROUP).T)
        values[part], group[part] = _round_columns(columns, scale[part], feedback)
    return RoundedRows("int4", _pack_nibbles(values[:, : inputs + -inputs % 8]), scale, group)


def _feedback(moments: npt.NDArray[np.float64], padded: int) -> Array:
    """Row k says how the inputs after k make good an error in the weight of k: the upper Cholesky factor of the
    inverse of the damped moments, with ones for the inputs that only fill up."""
    damped = np.eye(padded)
    inputs = len(moments)
    damped[:inputs, :inputs] = moments + _DAMPING * np.trace(moments) / inputs * np.eye(inputs)
    if not moments.any():  # inputs that are always zero: no weight matters
        return np.eye(padded, dtype=np.float32)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T, np.float32)


def _round_columns(columns: Array, scale: Array, feedback: Array | None) -> tuple[Array, Array]:
    """``columns`` [K, rows] (changed) to values [rows, K] and factors [rows, K / 32], whole numbers."""
    factors = np.empty((len(columns) // GROUP, len(scale)), np.float32)
    values = np.empty_like(columns)
    for n, factor in enumerate(factors):
        here = slice(n * GROUP, (n + 1) * GROUP)
        factor[:] = _best_factor(columns[here], scale)
        if feedback is None:
            values[here] = _to_values(columns[here], scale * factor)
        else:
            values[here], error = _round_group(columns[here], scale * factor, feedback[here, here])
            columns[here.stop :] -= feedback[here, here.stop :].T @ error
    return values.T, factors.T


def _best_factor(weights: Array, scale: Array) -> Array:
    """[rows] of whole numbers for a group of weights [32, rows]."""
    largest = np.take_along_axis(weights, np.abs(weights).argmax(axis=0)[None], axis=0)[0] / _safe(scale)
    best, least = np.zeros_like(scale), np.full_like(scale, np.inf)
    for peak in _PEAKS:
        factor = np.rint(largest / np.float32(peak)).clip(-127, 127)
        error = _to_values(weights, scale * factor)
        error *= scale * factor
        error -= weights
        squares = np.einsum("kr,kr->r", error, error)
        best = np.where(squares < least, factor, best)
        least = np.minimum(squares, least)
    return best


def _to_values(weights: Array, step: Array) -> Array:
    values = weights * np.where(step == 0, np.float32(0), 1 / _safe(step))
    np.rint(values, out=values)
    return np.clip(values, -8, 7, out=values)


def _round_group(weights: Array, step: Array, feedback: Array) -> tuple[Array, Array]:
    """Values of a group of weights [32, rows] (changed), rounded one input after the other, and what is left to
    make good."""
    values, error = np.empty_like(weights), np.empty_like(weights)
    for k, weight in enumerate(weights):
        values[k] = _to_values(weight, step)
        error[k] = (weight - values[k] * step) / feedback[k, k]
        weights[k + 1 :] -= feedback[k, k + 1 :, None] * error[k]
    return values, error


def _pack_nibbles(values: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """[rows, 8 n] of -8 … 7 to bytes [rows, 4 n]: of eight, the first four in the low halves."""
    pairs = (values + 8).view(np.uint8).reshape(len(values), -1, 2, 4)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(values), -1).view(np.int8)


def _unpack_nibbles(packed: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """The inverse of `_pack_nibbles`."""
    pairs = packed.view(np.uint8).reshape(len(packed), -1, 1, 4) >> np.array([[0], [4]], np.uint8) & 15
    return np.asarray(pairs.reshape(len(packed), -1).view(np.int8) - np.int8(8))
