# SPDX-License-Identifier: Apache-2.0
"""Write the model file, and unpack it to plain arrays again. docs/format.md describes it.

Reading a file to run it is the C core's job; what is here needs the ``gguf`` package only to write.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm import _engine
from fastlm.rounding import BLOCK, RUN, Array, RoundedRows, round_rows
from fastlm.screening import Screen

PANEL = 16
"""Output rows that lie side by side."""

SCREEN_BLOCK = 64
"""Rows of the output matrix that a screen looks at together."""

PAGE_BLOCKS, SPARE_BLOCKS = 64, 4
"""Blocks of a panel, of 64 bytes, in a page of memory, and what keeps panels off each other's place in it."""

INPUT_STEP = 1 / 127  # of quantised hidden states, which are within (-1, 1)
LARGEST_WEIGHT = 2.0**40  # beyond it sums could overflow (docs/numerics.md)


@dataclass(frozen=True)
class LSTMWeights:
    """One LSTM layer in Keras' shapes and gate order (i, f, g, o): ``kernel`` [inputs, 4 H], ``recurrent`` [H, 4 H],
    ``bias`` [4 H] (zeros if the layer has none), float32."""

    kernel: Array
    recurrent: Array
    bias: Array

    @property
    def units(self) -> int:
        return len(self.recurrent)


@dataclass(frozen=True)
class Weights:
    """A whole model in Keras' shapes, float32: ``embedding`` [V, E], LSTM layers, ``output`` [H, V] (None: tied, the
    transposed embedding) and ``output_bias`` [V]."""

    embedding: Array
    layers: tuple[LSTMWeights, ...]
    output: Array | None
    output_bias: Array

    @classmethod
    def from_dict(cls, arrays: Mapping[str, Any]) -> Weights:
        """From arrays by name: ``embedding``, ``lstm.N.kernel``, ``lstm.N.recurrent_kernel``, ``lstm.N.bias``
        (N from 0), ``output.kernel``, ``output.bias``. Without biases they are zero; without ``output.kernel``
        the output is tied to the embedding.

        Raises
        ------
        ValueError
            Naming the array that is missing, unknown, misshapen, or not finite.
        """
        left = dict(arrays)
        embedding = _take(left, "embedding", (None, None))
        layers: list[LSTMWeights] = []
        inputs = embedding.shape[1]
        while (name := f"lstm.{len(layers)}") and any(key.startswith(name + ".") for key in left):
            recurrent = _take(left, f"{name}.recurrent_kernel", (None, None))
            units = recurrent.shape[0]
            _expect_shape(f"{name}.recurrent_kernel", recurrent, (units, 4 * units))
            kernel = _take(left, f"{name}.kernel", (inputs, 4 * units))
            bias = _take(left, f"{name}.bias", (4 * units,), optional=True)
            layers.append(LSTMWeights(kernel, recurrent, bias))
            inputs = units
        if not layers:
            raise ValueError("expected at least one LSTM layer: 'lstm.0.kernel', 'lstm.0.recurrent_kernel'")
        tied = "output.kernel" not in left
        if tied and embedding.shape[1] != inputs:
            raise ValueError(
                f"no 'output.kernel', and the embedding of size {embedding.shape[1]} cannot be tied to the output of "
                f"the last layer, which has {inputs} units"
            )
        output = None if tied else _take(left, "output.kernel", (inputs, embedding.shape[0]))
        output_bias = _take(left, "output.bias", (embedding.shape[0],), optional=True)
        if left:
            raise ValueError(f"unknown array {next(iter(left))!r}: expected embedding, lstm.N.*, output.*")
        return cls(embedding, tuple(layers), output, output_bias)

    def to_dict(self) -> dict[str, Array]:
        """The inverse of `from_dict`."""
        found = {"embedding": self.embedding}
        for n, layer in enumerate(self.layers):
            found[f"lstm.{n}.kernel"] = layer.kernel
            found[f"lstm.{n}.recurrent_kernel"] = layer.recurrent
            found[f"lstm.{n}.bias"] = layer.bias
        if self.output is not None:
            found["output.kernel"] = self.output
        return {**found, "output.bias": self.output_bias}

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(array.size for array in self.to_dict().values())


def _take(left: dict[str, Any], name: str, shape: tuple[int | None, ...], optional: bool = False) -> Array:
    if name not in left or (optional and left[name] is None):
        left.pop(name, None)
        if optional:
            return np.zeros([n or 0 for n in shape], np.float32)
        raise ValueError(f"array {name!r} is missing")
    try:
        array = np.ascontiguousarray(left.pop(name), np.float32)
    except (TypeError, ValueError) as e:
        raise ValueError(f"{name}: expected an array of numbers: {e}") from None
    _expect_shape(name, array, shape)
    if not (np.abs(array) <= LARGEST_WEIGHT).all():
        raise ValueError(f"{name}: a weight is not a number, infinite or above 2^40")
    return array


def _expect_shape(name: str, array: Array, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape:
        wanted = " x ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape {wanted}, found {' x '.join(map(str, array.shape))}")


# ---- layout ------------------------------------------------------------------------------------------


def filled_rows(rows: Array) -> Array:
    """[rows, K] with rows of zeros behind, up to whole panels."""
    return np.pad(rows, ((0, -len(rows) % PANEL), (0, 0)))


def gate_rows(kernel: Array) -> Array:
    """Keras kernel [K, 4 H] to rows [64 ⌈H/16⌉, K]: i, f, g and o of the same 16 units in turn, units filled up."""
    gates = [filled_rows(gate).reshape(-1, PANEL, len(kernel)) for gate in np.split(kernel.T, 4)]
    return np.stack(gates, axis=1).reshape(-1, len(kernel))


def kernel_of(rows: Array, units: int) -> Array:
    """The inverse of `gate_rows`."""
    gates = rows.reshape(-1, 4, PANEL, rows.shape[1]).swapaxes(0, 1).reshape(4, -1, rows.shape[1])
    return np.ascontiguousarray(gates[:, :units].reshape(4 * units, -1).T)


def pack(rows: npt.NDArray[Any], run: int) -> npt.NDArray[Any]:
    """Rows [16 n, m] to panels [n, m / run, 16, run]: 16 rows side by side, ``run`` elements of each at a time.
    A run of 1 has no axis of its own."""
    panels = rows.reshape(-1, PANEL, rows.shape[1] // run, run).swapaxes(1, 2)
    return np.ascontiguousarray(panels[..., 0] if run == 1 else panels)


def unpack_rows(panels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of `pack`."""
    rows = panels.reshape(*panels.shape[:2], PANEL, -1).swapaxes(1, 2)
    return np.asarray(rows.reshape(PANEL * len(panels), -1))


def spread(panels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Panels [n, blocks, 16, ...] with a few blocks of zeros behind each that would else be nearly whole pages long."""
    blocks = panels.shape[1]
    if blocks <= PAGE_BLOCKS or (blocks + 1) % PAGE_BLOCKS > SPARE_BLOCKS:
        return panels
    return np.pad(panels, [(0, SPARE_BLOCKS if axis == 1 else 0) for axis in range(panels.ndim)])


def filled_blocks(rows: npt.NDArray[Any], axis: int = 0) -> npt.NDArray[Any]:
    """With zeros behind the rows, up to whole blocks."""
    return np.pad(rows, [(0, -rows.shape[axis] % SCREEN_BLOCK if n == axis else 0) for n in range(rows.ndim)])


def pack_signs(signs: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """[planes, V, K] to int8 [blocks, planes, ⌈K / 16⌉, 2 · 64]: twice 8 bits of each row of a block, the rows in an
    order that suits the engine (docs/format.md)."""
    planes, _, inputs = signs.shape
    bits = np.pad(filled_blocks(signs, axis=1), ((0, 0), (0, 0), (0, -inputs % 16)))
    octets = np.packbits(bits, axis=2, bitorder="little").reshape(planes, -1, 2, 2, 16, bits.shape[2] // 16, 2)
    # axes: plane, block, half of the block, sixteen of the half, row of these, pair, octet of the pair
    ordered = octets.transpose(1, 0, 5, 6, 2, 4, 3)
    return np.ascontiguousarray(ordered).view(np.int8).reshape(-1, planes, bits.shape[2] // 16, 2 * SCREEN_BLOCK)


def weight_panels(matrix: RoundedRows) -> npt.NDArray[Any]:
    """Weights as a file holds them; int4 gains nothing by being spread (docs/format.md)."""
    panels = pack(matrix.weight, RUN[matrix.dtype])
    return panels if matrix.dtype == "int4" else spread(panels)


# ---- file --------------------------------------------------------------------------------------------


def matrices(weights: Weights) -> dict[str, Array]:
    """Every matrix of a model by the name of its tensors, as rows of outputs [rows, K]; those that a file holds in
    panels filled up to whole ones."""
    found = {} if weights.output is None else {"token_embd": weights.embedding}
    for n, layer in enumerate(weights.layers):
        found[f"blk.{n}.x"] = gate_rows(layer.kernel)
        found[f"blk.{n}.h"] = gate_rows(layer.recurrent)
    output = weights.embedding if weights.output is None else weights.output.T
    return {**found, "output": filled_rows(output)}


def layer_table(weights: Weights, rounded: Mapping[str, RoundedRows]) -> dict[str, list[Any]]:
    """The layer table (docs/format.md), as columns."""
    units = [weights.embedding.shape[1], *(layer.units for layer in weights.layers), len(weights.embedding)]
    count = len(units)
    tied = weights.output is None
    of_layer = [[], *([f"blk.{n}.x", f"blk.{n}.h"] for n in range(count - 2)), ["output"]]
    integers = [any(rounded[name].scale is not None for name in names) for names in of_layer]
    return {
        "kind": ["embedding", *["lstm"] * (count - 2), "dense"],
        "input": [*range(-1, count - 1)],
        "units": units,
        "direction": ["forward"] * count,
        "scale": [INPUT_STEP if whole else 0.0 for whole in integers],
        "layout": ["panels16" if tied else "rows", *["panels16"] * (count - 1)],
        "tensor": ["output" if tied else "token_embd", *(f"blk.{n}" for n in range(count - 2)), "output"],
    }


def screen_tensors(screen: Screen) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """What a file holds of a screen, by the end of its name."""
    yield "mean", screen.mean
    yield "spread", screen.spread
    yield "gain", screen.gain
    yield "basis.weight", spread(pack(screen.basis, 1))
    yield "along.scale", filled_blocks(screen.along_scale).reshape(-1, PANEL)
    yield "along.weight", spread(pack(filled_blocks(screen.along), RUN["int8"]))
    yield "shift", filled_blocks(screen.shift).reshape(-1, SCREEN_BLOCK)
    yield "radius", filled_blocks(screen.radius).reshape(-1, SCREEN_BLOCK)
    yield "size", filled_blocks(screen.size, axis=1).reshape(len(screen.size), -1, SCREEN_BLOCK)
    yield "bits", pack_signs(screen.signs)


def _tensors(
    weights: Weights, rounded: Mapping[str, RoundedRows], screen: Screen | None
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """In the order in which a token uses them."""
    biases = {f"blk.{n}.x": (f"blk.{n}", gate_rows(layer.bias[None])) for n, layer in enumerate(weights.layers)}
    biases["output"] = ("output", filled_rows(weights.output_bias[:, None]))
    for name, matrix in rounded.items():
        if name in biases:
            layer, bias = biases[name]
            yield f"{layer}.bias", bias.reshape(-1, PANEL)
        in_panels = name != "token_embd"
        if matrix.scale is not None:
            yield f"{name}.scale", matrix.scale.reshape(-1, PANEL) if in_panels else matrix.scale
        if matrix.group is not None:
            yield f"{name}.group", pack(matrix.group, 2) if in_panels else matrix.group
        yield f"{name}.weight", weight_panels(matrix) if in_panels else matrix.weight
    for part, tensor in screen_tensors(screen) if screen else ():
        yield f"output.screen.{part}", tensor


WRITTEN = (
    "general.architecture",
    "general.alignment",
    "lstm.task",
    "lstm.numerics_version",
    "lstm.start.state",
    "lstm.layer.",
)
"""How the keys start that `write` sets by itself."""


def write(
    path: str | os.PathLike[str],
    weights: Weights,
    fields: Mapping[str, Any],
    rounded: Mapping[str, RoundedRows] | None = None,
    screen: Screen | None = None,
) -> None:
    """Writes a model file. Use it inside `atomic`, so that there is all of it or nothing.

    Parameters
    ----------
    path : path
    weights : Weights
    fields : mapping
        Further keys: str, bool, int (uint32 if it fits), float (float32), list of str, or an array of numbers.
    rounded : mapping, optional
        What the file holds instead of each of `matrices`. Default: float32.
    screen : Screen, optional
        Of the output matrix.

    Raises
    ------
    ImportError
        The ``gguf`` package is missing.
    OSError
        The file cannot be written.
    """
    gguf = gguf_package()
    if rounded is None:
        rounded = {name: round_rows(rows, "f32") for name, rows in matrices(weights).items()}
    writer = gguf.GGUFWriter(path, "lstm")
    try:
        writer.add_custom_alignment(64)
        writer.add_string("lstm.task", "lm")
        writer.add_uint32("lstm.numerics_version", _engine.NUMERICS_VERSION)
        writer.add_string("lstm.start.state", "zero")
        for column, values in layer_table(weights, rounded).items():
            sub_type = gguf.GGUFValueType.UINT32 if column == "units" else None
            writer.add_key_value(f"lstm.layer.{column}", values, gguf.GGUFValueType.ARRAY, sub_type)
        for key, value in fields.items():
            _add_field(writer, key, value)
        for name, tensor in _tensors(weights, rounded, screen):
            kind = gguf.GGMLQuantizationType.BF16 if tensor.dtype == np.uint16 else None  # else as the array says
            writer.add_tensor(name, tensor, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def gguf_package() -> Any:
    """The package that writes model files. Raises ImportError, saying how to get it."""
    try:
        import gguf
    except ImportError as e:
        raise ImportError("writing a model file needs the 'gguf' package: pip install 'fastlm[export]'") from e
    return gguf


def _add_field(writer: Any, key: str, value: Any) -> None:
    types = gguf_package().GGUFValueType
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        kind = types.UINT32 if 0 <= value < 2**32 else types.INT64 if value < 2**63 else types.UINT64
        writer.add_key_value(key, value, kind)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        _add_array(writer, key, value, types.STRING)
    else:
        _add_array(writer, key, value.tolist(), types[np.asarray(value).dtype.name.upper()])


def _add_array(writer: Any, key: str, items: list[Any], kind: Any) -> None:
    if items:  # the package does not write an empty one, which says nothing
        writer.add_key_value(key, items, gguf_package().GGUFValueType.ARRAY, kind)


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name beside ``path``: becomes ``path`` if the block succeeds, and is removed if it fails.

    A link is followed: what it points to is replaced.

    Raises
    ------
    OSError
        ``path`` cannot be written, or is a directory or a device; it is then as it was.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        kind = IsADirectoryError if os.path.isdir(path) else OSError
        raise kind(errno.EISDIR if kind is IsADirectoryError else errno.EINVAL, "expected the name of a file", path)
    temporary = f"{path}.{secrets.token_hex(4)}.part"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if os.path.exists(path):
            shutil.copymode(path, temporary)
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as e:
        os.unlink(temporary)
        if e.errno is None:  # numpy tells a short write in words of its own
            raise OSError(errno.ENOSPC, f"not written whole, is the disk full? ({e})", path) from e
        raise
    except BaseException:
        os.unlink(temporary)
        raise


_ELEMENTS = {0: np.float32, 24: np.int8, 30: np.uint16}  # by GGML's number of a type


def _read_tensors(path: str, engine: _engine.Model) -> dict[str, npt.NDArray[Any]]:
    data = np.memmap(path, np.uint8, "r")
    return {
        name: np.array(data[offset : offset + size]).view(_ELEMENTS[kind]).reshape(shape)
        for name, shape, offset, size, kind in engine.tensors()
    }


def _read_matrix(
    tensors: Mapping[str, npt.NDArray[Any]], name: str, inputs: int, in_panels: bool = True
) -> RoundedRows:
    weight, scale, group = (tensors.get(f"{name}.{part}") for part in ("weight", "scale", "group"))
    assert weight is not None  # the engine has checked the file
    dtype = {"float32": "f32", "uint16": "bf16", "int8": "int8" if group is None else "int4"}[weight.dtype.name]
    if not in_panels:
        return RoundedRows(dtype, weight, scale, group)
    return RoundedRows(
        dtype,
        unpack_rows(weight[:, : -(-inputs // BLOCK[dtype])]),
        None if scale is None else scale.reshape(-1),
        None if group is None else unpack_rows(group),
    )


def unpack(path: str | os.PathLike[str]) -> Weights:
    """The weights of a model file as plain arrays, those that the engine computes with: rounded ones as float32.

    Raises
    ------
    FormatError, OSError
        As `fastlm.load`.
    """
    return unpack_rounded(path)[0]


def unpack_rounded(path: str | os.PathLike[str]) -> tuple[Weights, dict[str, RoundedRows]]:
    """As `unpack`, and each of `matrices` as the file holds it."""
    path = os.fspath(path)
    engine = _engine.Model(path, None, None, 0)
    facts, tensors = engine.info(), _read_tensors(path, engine)
    units, vocab_size, tied = facts["units"], facts["vocab_size"], facts["tied"]
    inputs = [facts["embedding_size"], *units]
    first, *cells, last = engine.value(engine.keys()["lstm.layer.tensor"])  # how the names of a layer's tensors begin
    rounded = {} if tied else {"token_embd": _read_matrix(tensors, first, inputs[0], in_panels=False)}
    for n, (cell, h) in enumerate(zip(cells, units, strict=True)):
        rounded[f"blk.{n}.x"] = _read_matrix(tensors, f"{cell}.x", inputs[n])
        rounded[f"blk.{n}.h"] = _read_matrix(tensors, f"{cell}.h", h)
    rounded["output"] = _read_matrix(tensors, last, units[-1])
    layers = tuple(
        LSTMWeights(
            kernel_of(rounded[f"blk.{n}.x"].to_float(inputs[n]), h),
            kernel_of(rounded[f"blk.{n}.h"].to_float(h), h),
            kernel_of(tensors[f"{cells[n]}.bias"].reshape(-1, 1), h)[0],
        )
        for n, h in enumerate(units)
    )
    rows = np.ascontiguousarray(rounded["output"].to_float(units[-1])[:vocab_size])
    bias = tensors[f"{last}.bias"].reshape(-1)[:vocab_size]
    if tied:
        return Weights(rows, layers, None, bias), rounded
    embedding = rounded["token_embd"].to_float(inputs[0])
    return Weights(embedding, layers, np.ascontiguousarray(rows.T), bias), rounded
