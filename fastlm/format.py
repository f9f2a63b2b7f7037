# SPDX-License-Identifier: Apache-2.0
"""Write the model file, and unpack it to plain arrays again. docs/format.md describes it.

Reading a file to run it is the C core's job; what is here needs the ``gguf`` package only to write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlm import _engine

Array = npt.NDArray[np.float32]

PANEL = 16
"""Output rows that lie side by side."""

NUMERICS_VERSION = 1
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


def pack_rows(rows: Array) -> Array:
    """[rows, K] to panels [ceil(rows / 16), K, 16]; what is missing in the last panel is zero."""
    panels = -(-len(rows) // PANEL)
    padded = np.zeros((panels * PANEL, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(panels, PANEL, -1).transpose(0, 2, 1))


def unpack_rows(panels: Array, rows: int) -> Array:
    """The inverse of `pack_rows`."""
    return np.ascontiguousarray(panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[:rows])


def pack_gates(kernel: Array) -> Array:
    """Keras kernel [K, 4 H] to panels [4 ceil(H / 16), K, 16]: i, f, g and o of the same 16 units in turn."""
    gates = np.stack([pack_rows(gate) for gate in np.split(kernel.T, 4)], axis=1)  # [groups, 4, K, 16]
    return gates.reshape(-1, kernel.shape[0], PANEL)


def unpack_gates(panels: Array, units: int) -> Array:
    """The inverse of `pack_gates`."""
    gates = panels.reshape(-1, 4, panels.shape[1], PANEL).transpose(1, 0, 2, 3)
    return np.ascontiguousarray(np.concatenate([unpack_rows(gate, units) for gate in gates]).T)


# ---- file --------------------------------------------------------------------------------------------


def layer_table(weights: Weights) -> dict[str, list[Any]]:
    """The layer table (docs/format.md), as columns."""
    units = [weights.embedding.shape[1], *(layer.units for layer in weights.layers), len(weights.embedding)]
    count = len(units)
    tied = weights.output is None
    return {
        "kind": ["embedding", *["lstm"] * (count - 2), "dense"],
        "input": [*range(-1, count - 1)],
        "units": units,
        "direction": ["forward"] * count,
        "scale": [0.0] * count,
        "layout": ["panels16" if tied else "rows", *["panels16"] * (count - 1)],
        "tensor": ["output" if tied else "token_embd", *(f"blk.{n}" for n in range(count - 2)), "output"],
    }


def _tensors(weights: Weights) -> Iterator[tuple[str, Array]]:
    """In the order in which a token uses them."""
    if weights.output is not None:
        yield "token_embd.weight", weights.embedding
    for n, layer in enumerate(weights.layers):
        yield f"blk.{n}.bias", pack_gates(layer.bias[None])[:, 0]
        yield f"blk.{n}.x.weight", pack_gates(layer.kernel)
        yield f"blk.{n}.h.weight", pack_gates(layer.recurrent)
    yield "output.bias", pack_rows(weights.output_bias[:, None])[:, 0]
    yield "output.weight", pack_rows(weights.embedding if weights.output is None else weights.output.T)


def write(path: str | os.PathLike[str], weights: Weights, fields: Mapping[str, Any]) -> None:
    """Writes a model file. Use it inside `atomic`, so that there is all of it or nothing.

    Parameters
    ----------
    path : path
    weights : Weights
    fields : mapping
        Further keys: str, bool, int (uint32), float (float32), list of str, or an array of int32 or float32.

    Raises
    ------
    ImportError
        The ``gguf`` package is missing.
    OSError
        The file cannot be written.
    """
    gguf = gguf_package()
    writer = gguf.GGUFWriter(path, "lstm")
    try:
        writer.add_custom_alignment(64)
        writer.add_string("lstm.task", "lm")
        writer.add_uint32("lstm.numerics_version", NUMERICS_VERSION)
        writer.add_string("lstm.start.state", "zero")
        for column, values in layer_table(weights).items():
            sub_type = gguf.GGUFValueType.UINT32 if column == "units" else None
            writer.add_key_value(f"lstm.layer.{column}", values, gguf.GGUFValueType.ARRAY, sub_type)
        for key, value in fields.items():
            _add_field(writer, key, value)
        for name, tensor in _tensors(weights):
            writer.add_tensor(name, tensor)
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
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else list(value))


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
    temporary = f"{path}.{os.getpid()}.part"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
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


def unpack(path: str | os.PathLike[str]) -> Weights:
    """The weights of a model file as plain arrays.

    Raises
    ------
    FormatError, OSError
        As `fastlm.load`.
    """
    path = os.fspath(path)
    engine = _engine.Model(path, None, None, 0)
    facts, data = engine.info(), np.memmap(path, np.uint8, "r")
    found = {
        name: np.array(data[offset : offset + size]).view(np.float32).reshape(shape)
        for name, shape, offset, size in engine.tensors()
    }
    embedding, *cells, output = engine.value(engine.keys()["lstm.layer.tensor"])
    layers = tuple(
        LSTMWeights(
            unpack_gates(found[f"{cell}.x.weight"], units),
            unpack_gates(found[f"{cell}.h.weight"], units),
            unpack_gates(found[f"{cell}.bias"][:, None], units)[0],
        )
        for cell, units in zip(cells, facts["units"], strict=True)
    )
    rows = unpack_rows(found[f"{output}.weight"], facts["vocab_size"])
    bias = unpack_rows(found[f"{output}.bias"][:, None], facts["vocab_size"])[:, 0]
    if facts["tied"]:
        return Weights(rows, layers, None, bias)
    return Weights(found[f"{embedding}.weight"], layers, np.ascontiguousarray(rows.T), bias)
