# SPDX-License-Identifier: Apache-2.0
"""Writing model files, unpacking them, and reading them with other people's tools."""

import os
import resource
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
from conftest import random_weights
from fastlm import format
from fastlm.weights import Weights


@given(st.integers(1, 70), st.integers(1, 9), st.sampled_from([1, 2, 4]))
def test_packed_rows_unpack(rows, blocks, run):
    array = np.arange(rows * blocks * run, dtype=np.float32).reshape(rows, -1) + 1
    filled = format.filled_rows(array)
    panels = format.pack(filled, run)
    assert panels.shape == (-(-rows // 16), blocks, 16, *([run] if run > 1 else []))
    assert panels[-1, :, (rows - 1) % 16].reshape(-1).tolist() == array[-1].tolist()
    assert (format.unpack_rows(panels)[:rows] == array).all()
    assert panels.sum() == array.sum()  # the padding is zero


SPREAD = [("f32", 127, 131), ("f32", 126, 126), ("bf16", 262, 135), ("int8", 510, 132)]


@pytest.mark.parametrize(("dtype", "inputs", "blocks"), SPREAD)
def test_panels_of_whole_pages_are_spread(tmp_path, dtype, inputs, blocks):
    weights = random_weights(vocab=20, embedding=inputs, units=[8], seed=1)
    path = tmp_path / "m.gguf"
    fastlm.export(weights, path, dtype=dtype)
    shapes = {name: shape for name, shape, *_ in fastlm._engine.Model(str(path), None, None, 1).tensors()}
    assert shapes["blk.0.x.weight"][:2] == (4, blocks)
    assert shapes["blk.0.h.weight"][1] == {"f32": 8, "bf16": 4, "int8": 2}[dtype]
    again = tmp_path / "again.gguf"
    fastlm.export(format.unpack(path).to_dict(), again, dtype=dtype)
    assert again.read_bytes() == path.read_bytes()


def test_names_of_tensors_are_those_of_the_layer_table(tmp_path, byte_model):
    data = Path(byte_model).read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(data.replace(b"blk.0", b"abc.0").replace(b"output", b"OUTPUT"))
    found, expected = format.unpack(path).to_dict(), format.unpack(byte_model).to_dict()
    assert all((found[name] == expected[name]).all() for name in expected)


@given(st.integers(1, 40), st.integers(1, 9))
def test_gates_lie_in_turn(units, inputs):
    kernel = np.arange(4 * units * inputs, dtype=np.float32).reshape(inputs, 4 * units)
    rows = format.gate_rows(kernel)
    assert rows.shape == (64 * -(-units // 16), inputs)
    assert rows[32, 0] == kernel[0, 2 * units]  # third panel: gate g of unit 0
    assert (format.kernel_of(rows, units) == kernel).all()


@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 100))
def test_a_file_unpacks_to_what_was_exported(tmp_path_factory, tied, bias, units, vocab):
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    weights = random_weights(vocab, units[-1] if tied else 7, units, tied, bias)
    fastlm.export(weights, path)
    found = format.unpack(path).to_dict()
    for name in weights:
        assert (found.pop(name) == weights[name]).all(), name
    assert all((bias == 0).all() for bias in found.values())  # those that were not given


def test_tensors_are_aligned_and_do_not_leave_the_file(byte_model):
    lm = fastlm.load(byte_model)
    for _, shape, offset, size, _ in lm._engine.tensors():
        assert offset % 64 == 0
        assert size == 4 * np.prod(shape)
        assert offset + size <= lm.info["file_bytes"]


def test_the_gguf_package_reads_what_we_write(byte_model):
    import gguf

    reader = gguf.GGUFReader(byte_model)
    lm = fastlm.load(byte_model)
    assert {t.name: t.data.shape for t in reader.tensors} == lm.info["tensors"]
    for key, value in lm.metadata.items():
        found = reader.get_field(key).contents()
        assert found == (list(value) if isinstance(value, array) else value), key
    dumped = subprocess.run(
        [sys.executable, "-m", "gguf.scripts.gguf_dump", byte_model], capture_output=True, text=True
    )
    assert dumped.returncode == 0, dumped.stderr
    assert "lstm.layer.units" in dumped.stdout
    assert "blk.0.h.weight" in dumped.stdout


def test_docs_describe_every_key_and_tensor(byte_model):
    with open(os.path.join(os.path.dirname(__file__), "..", "docs", "format.md"), encoding="utf-8") as file:
        text = file.read()
    lm = fastlm.load(byte_model)
    for key in lm.metadata:
        assert f"`{key}`" in text or f"`{key.rsplit('.', 1)[0]}.*`" in text, key
    for name in lm.info["tensors"]:
        assert name.replace("blk.0", "blk.N").replace("blk.1", "blk.N") in text, name


BAD_ARRAYS = [
    ({"embedding": None}, "'embedding' is missing"),
    ({"lstm.0.kernel": None}, "'lstm.0.kernel' is missing"),
    ({"lstm.0.kernel": np.zeros((3, 80))}, "lstm.0.kernel: expected shape 12 x 80, found 3 x 80"),
    ({"lstm.0.recurrent_kernel": np.zeros((20, 60))}, "lstm.0.recurrent_kernel: expected shape 20 x 80, found 20 x 60"),
    ({"lstm.0.bias": np.zeros(79)}, "lstm.0.bias: expected shape 80, found 79"),
    ({"output.kernel": np.zeros((20, 49))}, "output.kernel: expected shape 20 x 50, found 20 x 49"),
    ({"output.kernel": None}, "cannot be tied to the output"),
    ({"gru.0.kernel": np.zeros(1)}, "unknown array 'gru.0.kernel'"),
    ({"lstm.2.kernel": np.zeros(1)}, "unknown array 'lstm.2.kernel'"),
    ({"embedding": np.full((50, 12), np.nan)}, "embedding: a weight is not a number"),
    ({"embedding": np.full((50, 12), 1e13)}, "embedding: a weight is not a number, infinite or above 2^40"),
    ({"output.bias": ["x"] * 50}, "output.bias: expected an array of numbers"),
    ({"embedding": np.zeros((0, 12))}, "embedding: expected shape any x any, found 0 x 12"),
]


@pytest.mark.parametrize("number", range(len(BAD_ARRAYS)))
def test_bad_arrays_are_named(number):
    change, message = BAD_ARRAYS[number]
    weights = {k: v for k, v in {**random_weights(), **change}.items() if v is not None}
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Weights.from_dict(weights)
    assert message in str(caught.value)


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="at least one LSTM layer"):
        Weights.from_dict({"embedding": np.zeros((3, 4))})


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir())


def test_export_into_a_missing_or_wrong_place_leaves_nothing(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.gguf"):
        fastlm.export(random_weights(), tmp_path / "folder.gguf")
    with pytest.raises(FileNotFoundError, match="missing"):
        fastlm.export(random_weights(), tmp_path / "missing" / "m.gguf")
    assert left_behind(tmp_path) == ["folder.gguf"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for the full disk; in a process of its own, since it cannot be lifted."""
    path = tmp_path / "m.gguf"
    fastlm.export(random_weights(), path)
    old = path.read_bytes()
    child = os.fork()
    if child == 0:
        import signal

        status = 1
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            fastlm.export(random_weights(seed=9), path)
        except OSError:
            status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == old
    assert left_behind(tmp_path) == ["m.gguf"]


def test_devices_are_not_replaced_and_links_are_followed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="expected the name of a file"):
        fastlm.export(random_weights(), tmp_path / "pipe")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "real.gguf")
    fastlm.export(random_weights(), tmp_path / "link.gguf")
    assert (tmp_path / "link.gguf").is_symlink()
    assert left_behind(tmp_path) == ["link.gguf", "pipe", "real.gguf"]


def test_an_existing_file_is_replaced_whole(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("old")
    report = fastlm.export(random_weights(), path)
    assert left_behind(tmp_path) == ["m.gguf"]
    assert report.bytes == path.stat().st_size
    assert report.parameters == sum(a.size for a in random_weights().values())
    assert report.max_error < 1e-5
    assert "parameters in f32" in str(report)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


BAD_EXPORTS = [
    ({"dtype": "int3"}, ValueError, "dtype='int3': expected f32, bf16, int8, int4, auto; did you mean int"),
    ({"tokenizer": 5}, TypeError, "tokenizer: expected"),
    ({"tokenizer": "bytes"}, ValueError, "the tokenizer has 257 tokens, but the model predicts only 50"),
    ({"tokenizer": "no-such.json"}, FileNotFoundError, "no-such.json"),
    ({"bos": "<s>"}, ValueError, "bos='<s>': expected a token id from 0 to 49"),
    ({"sampling": {"top_k": None}}, ValueError, "sampling 'top_k': expected a number"),
    ({"bos": 50}, ValueError, "bos=50: expected a token id from 0 to 49"),
    ({"sampling": {"temp": 1}}, ValueError, "sampling 'temp': expected a number for one of temperature, top_k, top_p"),
    ({"sampling": {"top_p": 2}}, ValueError, "top_p=2"),
    ({"metadata": {"colour": "red"}}, ValueError, "metadata 'colour': expected a text for one of name"),
    ({"metadata": {"name": 3}}, ValueError, "metadata 'name'"),
]


@pytest.mark.parametrize("number", range(len(BAD_EXPORTS)))
def test_bad_export_options_are_named(tmp_path, number):
    options, error, message = BAD_EXPORTS[number]
    with pytest.raises(error) as caught:
        fastlm.export(random_weights(), tmp_path / "m.gguf", **options)
    assert message in str(caught.value)
    assert left_behind(tmp_path) == []


def test_missing_gguf_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'fastlm\[export\]'"):
        fastlm.export(random_weights(), tmp_path / "m.gguf")
    assert left_behind(tmp_path) == []
