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
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastlm import _engine
from fastlm.rounding import BLOCK, RUN, Array, RoundedRows, round_rows
from fastlm.screening import Screen
from fastlm.weights import (
    Attention,
    Bridge,
    ClassifierWeights,
    Dense,
    Encoder,
    LSTMWeights,
    Pooling,
    Stack,
    Weights,
    widths,
)

AnyWeights: TypeAlias = "Weights | ClassifierWeights"

PANEL = 16
"""Output rows that lie side by side."""

SCREEN_BLOCK = 64
"""Rows of the output matrix that a screen looks at together."""

PAGE_BLOCKS, SPARE_BLOCKS = 64, 4
"""Blocks of a panel, of 64 bytes, in a page of memory, and what keeps panels off each other's place in it."""

INPUT_STEP = 1 / 127  # of quantised hidden states, which are within (-1, 1)


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


@dataclass(frozen=True)
class _Matrix:
    """A matrix of a file: its rows of outputs [rows, K], and, in panels, their biases [rows]."""

    rows: Array
    bias: tuple[str, Array] | None = None  # with the name of its tensor


def _dense_rows(name: str, dense: Dense) -> _Matrix:
    return _Matrix(filled_rows(dense.kernel.T), (f"{name}.bias", filled_rows(dense.bias[:, None])))


def _lstm_rows(name: str, layer: LSTMWeights) -> dict[str, _Matrix]:
    bias = (f"{name}.bias", gate_rows(layer.bias[None]))
    return {f"{name}.x": _Matrix(gate_rows(layer.kernel), bias), f"{name}.h": _Matrix(gate_rows(layer.recurrent))}


def _stack_rows(prefix: str, stack: Stack) -> dict[str, _Matrix]:
    found: dict[str, _Matrix] = {}
    for n, pair in enumerate(stack):
        for name, way in zip((f"{prefix}.{n}", f"{prefix}.{n}.reverse"), pair, strict=True):
            found |= {} if way is None else _lstm_rows(name, way)
    return found


def _encoder_rows(encoder: Encoder) -> dict[str, _Matrix]:
    found = {} if encoder.embedding is None else {"source_embd": _Matrix(encoder.embedding)}
    found |= _stack_rows("enc", encoder.layers)
    for n, bridge in enumerate(encoder.bridges):
        if bridge is not None:
            found[f"blk.{n}.bridge.h"] = _dense_rows(f"blk.{n}.bridge.h", bridge.h)
            found[f"blk.{n}.bridge.c"] = _dense_rows(f"blk.{n}.bridge.c", bridge.c)
    return found


def _attention_rows(attention: Attention) -> dict[str, _Matrix]:
    found = {} if attention.feed is None else {"blk.0.feed": _Matrix(gate_rows(attention.feed))}
    if attention.key is not None:
        found["attn.key"] = _Matrix(filled_rows(attention.key.T))
    if attention.query is not None:
        found["attn.query"] = _dense_rows("attn.query", attention.query)
    found["attn.context"] = _dense_rows("attn", Dense(attention.context, attention.bias))
    found["attn.hidden"] = _Matrix(filled_rows(attention.hidden.T))
    return found


def _matrices(weights: AnyWeights) -> dict[str, _Matrix]:
    """In the order in which a text uses them."""
    if isinstance(weights, ClassifierWeights):
        found = {"token_embd": _Matrix(weights.embedding), **_stack_rows("blk", weights.layers)}
        if weights.pooling.key is not None:
            found["pool.key"] = _dense_rows("pool.key", weights.pooling.key)
        return {**found, "output": _dense_rows("output", weights.output)}
    found = {} if weights.encoder is None else _encoder_rows(weights.encoder)
    if weights.output is not None:
        found["token_embd"] = _Matrix(weights.embedding)
    for n, layer in enumerate(weights.layers):
        found |= _lstm_rows(f"blk.{n}", layer)
    if weights.attention is not None:
        found |= _attention_rows(weights.attention)
    output = weights.embedding.T if weights.output is None else weights.output
    return {**found, "output": _dense_rows("output", Dense(output, weights.output_bias))}


EMBEDDINGS = ("token_embd", "source_embd")
"""Matrices that lie in rows of their own, not in panels: a token reads one."""


def matrices(weights: AnyWeights) -> dict[str, Array]:
    """Every matrix of a model by the name of its tensors, as rows of outputs [rows, K]; those that a file holds in
    panels filled up to whole ones."""
    return {name: matrix.rows for name, matrix in _matrices(weights).items()}


@dataclass(frozen=True)
class _Row:
    """Of the layer table (docs/format.md)."""

    kind: str
    input: int
    units: int
    tensor: str
    matrices: tuple[str, ...] = ()
    direction: str = "forward"
    layout: str = "panels16"


TOKEN, SOURCE_TOKEN = -1, -2
"""What an embedding reads."""


def _stack_table(prefix: str, stack: Stack) -> list[_Row]:
    """Behind an embedding that is the first layer."""
    rows = []
    for n, (forward, backward) in enumerate(stack):
        name, ways = f"{prefix}.{n}", ("",) if backward is None else ("", ".reverse")
        parts = tuple(f"{name}{way}.{part}" for way in ways for part in "xh")
        direction = "forward" if backward is None else "bidirectional"
        rows.append(_Row("lstm", n, forward.units, name, parts, direction))
    return rows


def _classifier_table(weights: ClassifierWeights) -> list[_Row]:
    rows = [_Row("embedding", TOKEN, weights.embedding.shape[1], "token_embd", layout="rows")]
    rows += _stack_table("blk", weights.layers)
    pooled, labels = weights.output.kernel.shape
    rows.append(_Row(f"pooling.{weights.pooling.kind}", len(rows) - 1, pooled, "pool", ("pool.key",)))
    return [*rows, _Row("dense", len(rows) - 1, labels, "output", ("output",))]


def _table(weights: AnyWeights) -> list[_Row]:
    if isinstance(weights, ClassifierWeights):
        return _classifier_table(weights)
    tied, E = weights.output is None, weights.embedding.shape[1]
    own = ("output", "panels16") if tied else ("token_embd", "rows")
    rows: list[_Row] = []
    if weights.encoder is not None:
        source = weights.encoder.embedding
        tensor, layout = own if source is None else ("source_embd", "rows")
        rows.append(_Row("embedding", SOURCE_TOKEN, E if source is None else source.shape[1], tensor, layout=layout))
        rows += _stack_table("enc", weights.encoder.layers)
    rows.append(_Row("embedding", TOKEN, E, own[0], layout=own[1]))
    for n, layer in enumerate(weights.layers):
        rows.append(_Row("lstm", len(rows) - 1, layer.units, f"blk.{n}", (f"blk.{n}.x", f"blk.{n}.h")))
    if weights.attention is not None:
        kind = "attention.dot" if weights.attention.query is None else "attention.additive"
        parts = tuple(f"attn.{part}" for part in ("key", "query", "context", "hidden"))
        rows.append(_Row(kind, len(rows) - 1, weights.attention.units, "attn", parts))
    return [*rows, _Row("dense", len(rows) - 1, len(weights.embedding), "output", ("output",))]


def layer_table(weights: AnyWeights, rounded: Mapping[str, RoundedRows]) -> dict[str, list[Any]]:
    """The layer table (docs/format.md), as columns."""
    rows = _table(weights)
    whole = [any(name in rounded and rounded[name].scale is not None for name in row.matrices) for row in rows]
    columns: dict[str, list[Any]] = {
        column: [getattr(row, column) for row in rows]
        for column in ("kind", "input", "units", "direction", "layout", "tensor")
    }
    return {**columns, "scale": [INPUT_STEP if one else 0.0 for one in whole]}


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


def _numbers(values: Array) -> Array:
    return filled_rows(values[:, None]).reshape(-1, PANEL)


def _tensors(
    weights: AnyWeights, rounded: Mapping[str, RoundedRows], screen: Screen | None
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """In the order in which a text uses them."""
    biases = {name: matrix.bias for name, matrix in _matrices(weights).items()}
    for name, matrix in rounded.items():
        if (bias := biases[name]) is not None:
            yield bias[0], bias[1].reshape(-1, PANEL)
        in_panels = name not in EMBEDDINGS
        if matrix.scale is not None:
            yield f"{name}.scale", matrix.scale.reshape(-1, PANEL) if in_panels else matrix.scale
        if matrix.group is not None:
            yield f"{name}.group", pack(matrix.group, 2) if in_panels else matrix.group
        yield f"{name}.weight", weight_panels(matrix) if in_panels else matrix.weight
    looks = weights.pooling if isinstance(weights, ClassifierWeights) else weights.attention
    if looks is not None and looks.score is not None:
        yield "pool.score" if isinstance(looks, Pooling) else "attn.score", _numbers(looks.score)
    if isinstance(looks, Attention) and looks.copy is not None:
        yield "attn.copy", _numbers(looks.copy.kernel[:, 0])
        yield "attn.copy.bias", _numbers(looks.copy.bias)
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
    weights: AnyWeights,
    fields: Mapping[str, Any],
    rounded: Mapping[str, RoundedRows] | None = None,
    screen: Screen | None = None,
) -> None:
    """Writes a model file. Use it inside `atomic`, so that there is all of it or nothing.

    Parameters
    ----------
    path : path
    weights : Weights or ClassifierWeights
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
        writer.add_string("lstm.task", weights.task)
        writer.add_uint32("lstm.numerics_version", _engine.NUMERICS_VERSION)
        writer.add_string("lstm.start.state", "source" if weights.task == "seq2seq" else "zero")
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


def rewrite(source: str | os.PathLike[str], path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Writes a copy of a model file in which keys have other values, or are new; ``path`` may be the same.

    Raises
    ------
    ImportError
        The ``gguf`` package is missing.
    OSError, ValueError
        A file cannot be read or written, or is no GGUF file.
    """
    gguf = gguf_package()
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError) as e:
        raise ValueError(f"{source}: no GGUF file: {e}") from None
    with atomic(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "lstm")
        try:
            writer.data_alignment = reader.alignment
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture" and key not in fields:
                    sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, field.contents(), field.types[0], sub_type)
            for key, value in fields.items():
                _add_field(writer, key, value)
            for tensor in reader.tensors:
                size = tensor.data.nbytes
                writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, size, tensor.tensor_type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in reader.tensors:
                writer.write_tensor_data(tensor.data)
        finally:
            writer.close()


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


def unpack(path: str | os.PathLike[str]) -> AnyWeights:
    """The weights of a model file as plain arrays, those that the engine computes with: rounded ones as float32.

    Raises
    ------
    FormatError, OSError
        As `fastlm.load`.
    """
    return unpack_rounded(path)[0]


def unpack_rounded(path: str | os.PathLike[str]) -> tuple[AnyWeights, dict[str, RoundedRows]]:
    """As `unpack`, and each of `matrices` as the file holds it."""
    path = os.fspath(path)
    engine = _engine.Model(path, None, None, 0)
    return _Unpacking(engine, _read_tensors(path, engine)).weights()


@dataclass
class _Unpacking:
    """A file's tensors become arrays again: the inverse of `_table` and `_matrices`, whatever names the file has."""

    engine: _engine.Model
    tensors: Mapping[str, npt.NDArray[Any]]
    rounded: dict[str, RoundedRows] = field(default_factory=dict)

    def weights(self) -> tuple[AnyWeights, dict[str, RoundedRows]]:
        keys = self.engine.keys()
        columns = (
            self.engine.value(keys[f"lstm.layer.{column}"]) for column in ("kind", "units", "tensor", "direction")
        )
        table = [*zip(*columns, strict=True)]
        found = self._classifier(table) if self.engine.labels else self._language_model(table)
        return found, {name: self.rounded[name] for name in matrices(found)}

    def _classifier(self, table: list[Any]) -> ClassifierWeights:
        (_, E, embedding, _), *stack, (kind, outputs, pool, _), (_, labels, output, _) = table
        layers = self._stack("blk", stack, E)
        pooling = Pooling(kind.removeprefix("pooling."))
        if pooling.kind == "attention":
            units = self.tensors[f"{pool}.score"].size  # filled up, as the score is
            key = self._dense("pool.key", f"{pool}.key", widths(layers)[-1], units)
            pooling = replace(pooling, key=key, score=self._numbers(f"{pool}.score", units))
        matrix = self._matrix("token_embd", embedding, E, in_panels=False)
        return ClassifierWeights(matrix, layers, pooling, self._dense("output", output, outputs, labels))

    def _language_model(self, table: list[Any]) -> Weights:
        facts = self.engine.info()
        cut = next(n for n in range(len(table) - 1, -1, -1) if table[n][0] == "embedding")
        stack = [row for row in table[cut:] if row[0] == "lstm"]
        attends = table[-2][0].startswith("attention.")
        tied, vocab_size = facts["tied"], facts["vocab_size"]
        encoder = self._encoder(table[: cut + 1], stack) if cut else None
        E = table[cut][1]
        embedding = None if tied else self._matrix("token_embd", table[cut][2], E, in_panels=False)
        layers, inputs = [], E
        for n, (_, units, name, _) in enumerate(stack):
            layers.append(self._lstm(f"blk.{n}", name, inputs, units))
            inputs = units
        attention = self._attention(table[-2], encoder, stack) if attends and encoder else None
        inputs = table[-2][1]
        rows = np.ascontiguousarray(self._matrix("output", table[-1][2], inputs)[:vocab_size])
        bias = self._numbers(f"{table[-1][2]}.bias", vocab_size)
        output = None if tied else np.ascontiguousarray(rows.T)
        return Weights(rows if embedding is None else embedding, tuple(layers), output, bias, encoder, attention)

    def _stack(self, prefix: str, rows: list[Any], inputs: int) -> Stack:
        layers: list[tuple[LSTMWeights, LSTMWeights | None]] = []
        for n, (_, units, tensor, direction) in enumerate(rows):
            both = direction == "bidirectional"
            reverse = self._lstm(f"{prefix}.{n}.reverse", f"{tensor}.reverse", inputs, units) if both else None
            layers.append((self._lstm(f"{prefix}.{n}", tensor, inputs, units), reverse))
            inputs = units * (1 + both)
        return tuple(layers)

    def _encoder(self, table: list[Any], stack: list[Any]) -> Encoder:
        (_, inputs, name, _), *encoders, (_, _, own, _) = table
        embedding = None if name == own else self._matrix("source_embd", name, inputs, in_panels=False)
        layers = self._stack("enc", encoders, inputs)
        encoder = Encoder(embedding, layers, ())
        bridges: list[Bridge | None] = []
        for n, (_, units, tensor, _) in enumerate(stack):
            width = encoder.widths[min(n, len(layers) - 1)]
            found = f"{tensor}.bridge.h.weight" in self.tensors
            parts = [
                self._dense(f"blk.{n}.bridge.{part}", f"{tensor}.bridge.{part}", 2 * width, units)
                for part in "hc"
                if found
            ]
            bridges.append(Bridge(*parts) if found else None)
        return replace(encoder, bridges=tuple(bridges))

    def _attention(self, row: Any, encoder: Encoder, stack: list[Any]) -> Attention:
        kind, units, name, _ = row
        width, hidden, additive = encoder.widths[-1], stack[-1][1], kind == "attention.additive"
        first = stack[0]
        feed, key = (f"{tensor}.weight" in self.tensors for tensor in (f"{first[2]}.feed", f"{name}.key"))

        def kernel(part: str, inputs: int, outputs: int) -> Array:
            return np.ascontiguousarray(self._matrix(f"attn.{part}", f"{name}.{part}", inputs)[:outputs].T)

        return Attention(
            kernel("context", width, units),
            kernel("hidden", hidden, units),
            self._numbers(f"{name}.bias", units),
            key=kernel("key", width, units if additive else hidden) if key else None,
            query=self._dense("attn.query", f"{name}.query", hidden, units) if additive else None,
            score=self._numbers(f"{name}.score", units) if additive else None,
            feed=kernel_of(self._matrix("blk.0.feed", f"{first[2]}.feed", units), first[1]) if feed else None,
            copy=self._copy(name, units) if f"{name}.copy" in self.tensors else None,
        )

    def _copy(self, name: str, units: int) -> Dense:
        kernel = self._numbers(f"{name}.copy", units)[:, None]
        return Dense(np.ascontiguousarray(kernel), self._numbers(f"{name}.copy.bias", 1))

    def _lstm(self, name: str, tensor: str, inputs: int, units: int) -> LSTMWeights:
        bias = self.tensors[f"{tensor}.bias"].reshape(-1, 1)
        return LSTMWeights(
            kernel_of(self._matrix(f"{name}.x", f"{tensor}.x", inputs), units),
            kernel_of(self._matrix(f"{name}.h", f"{tensor}.h", units), units),
            kernel_of(bias, units)[0],
        )

    def _dense(self, name: str, tensor: str, inputs: int, outputs: int) -> Dense:
        kernel = np.ascontiguousarray(self._matrix(name, tensor, inputs)[:outputs].T)
        return Dense(kernel, self._numbers(f"{tensor}.bias", outputs))

    def _numbers(self, tensor: str, count: int) -> Array:
        return np.asarray(self.tensors[tensor].reshape(-1)[:count])

    def _matrix(self, name: str, tensor: str, inputs: int, in_panels: bool = True) -> Array:
        """Rows of outputs as floats; as the file has them they go to ``rounded``."""
        self.rounded[name] = _read_matrix(self.tensors, tensor, inputs, in_panels)
        return self.rounded[name].to_float(inputs)
