# SPDX-License-Identifier: Apache-2.0
"""Weights in fewer bits: the rounding, the file, what the engine computes from it, and the reports."""

import doctest
import importlib
import os
import re
from array import array
from importlib import resources

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
import reference
from conftest import LEVELS, random_weights
from fastlm import format, quantizer
from fastlm.cli import main
from fastlm.rounding import BITS, RoundedRows, round_rows
from fastlm.weights import Weights

STORIES = str(resources.files("fastlm.models") / "stories.gguf")
INPUTS = (1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 650)
DTYPES = st.sampled_from(list(BITS))


@pytest.fixture(scope="module")
def stories():
    return fastlm.load(STORIES)


@pytest.fixture(scope="module")
def text(stories):
    """The bundled model's own text stands for text that it was not trained on."""
    prompts = ["Once upon a time", "The old gray rabbit", "One day", "Mother said", "In the woods", "Last night"]
    told = stories.generate(prompts, max_tokens=400, temperature=0.9, top_p=1.0, seed=3, echo=True)
    return "\n\n".join(str(one) for one in told)


def random_rows(rows, inputs, seed=0):
    """Rows of very different sizes, one of zeros."""
    r = np.random.default_rng(seed)
    found = r.normal(size=(rows, inputs)) * np.exp(r.normal(size=(rows, 1)))
    found[rows // 2] = 0
    return found.astype(np.float32)


# ---- rounding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", INPUTS)
def test_errors_are_within_theory(inputs):
    rows = random_rows(50, inputs)
    scale = np.abs(rows).max(axis=1, keepdims=True)
    assert (round_rows(rows, "f32").to_float(inputs) == rows).all()
    assert (np.abs(round_rows(rows, "bf16").to_float(inputs) - rows) <= 2.0**-8 * np.abs(rows)).all()
    assert (np.abs(round_rows(rows, "int8").to_float(inputs) - rows) <= scale / 127 * 0.50001).all()
    # int4: the factor that makes a group's largest weight 7 is always tried, and is off by half a step of its own.
    error = round_rows(rows, "int4").to_float(inputs) - rows
    for at in range(0, inputs, 32):
        largest = np.abs(rows[:, at : at + 32]).max(axis=1, keepdims=True)
        rms = np.sqrt(np.square(error[:, at : at + 32]).mean(axis=1, keepdims=True))
        assert (rms <= largest / 14 + 4 * scale / (7 * 127)).all()


def test_bf16_is_rounded_to_nearest_and_ties_to_even():
    bits = np.array([[0x3F800000, 0x3F808000, 0x3F808001, 0x3F818000, 0xBF807FFF]], np.uint32)
    assert [hex(w) for w in round_rows(bits.view(np.float32), "bf16").weight[0, :5]] == [
        "0x3f80",
        "0x3f80",
        "0x3f81",
        "0x3f82",
        "0xbf80",
    ]


def test_int8_rows_use_all_steps_and_never_minus_128():
    rounded = round_rows(random_rows(200, 40), "int8")
    assert rounded.weight.min() == -127
    assert rounded.weight.max() == 127
    assert set(np.abs(rounded.weight).max(axis=1)) == {0, 127}


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_extreme_rows_round_without_a_warning(dtype):
    rows = np.array([[2.0**40] * 70, [1e-45] * 70, [-1e-38] * 70, [-(2.0**40)] + [0.0] * 69], np.float32)
    found = round_rows(rows, dtype).to_float(70)
    np.testing.assert_allclose(found[[0, 3]], rows[[0, 3]], rtol=0.02)
    assert (found[1:3] == 0).all()


def test_int4_takes_the_sign_that_fits():
    """A group with one large weight uses -8 for it, whatever its sign."""
    rows = np.zeros((2, 32), np.float32)
    rows[:, 0], rows[:, 1:5] = (8, -8), (1, 2, 3, 7)
    assert np.abs(round_rows(rows, "int4").to_float(32)[0] - rows[0]).max() < 0.1


@pytest.mark.parametrize("inputs", INPUTS)
def test_feedback_lowers_what_matters(inputs):
    """With inputs that go together, the error of the sums falls, though that of the weights rises."""
    r = np.random.default_rng(1)
    x = r.normal(size=(4000, inputs)) @ r.normal(size=(inputs, inputs)) + 1
    rows = random_rows(40, inputs)
    rows /= np.abs(rows).max(axis=1, keepdims=True) + 1e-9
    before, after = (
        np.square((round_rows(rows, "int4", moments).to_float(inputs) - rows) @ x.T).mean()
        for moments in (None, x.T @ x / len(x))
    )
    assert after <= before if inputs < 31 else after < 0.8 * before


def test_feedback_from_inputs_that_are_always_zero_changes_nothing():
    rows = random_rows(20, 40)
    plain, blind = round_rows(rows, "int4"), round_rows(rows, "int4", np.zeros((40, 40)))
    assert (plain.weight == blind.weight).all()
    assert (plain.group == blind.group).all()


# ---- the file ----------------------------------------------------------------------------------------


@st.composite
def mixtures(draw):
    units = draw(st.lists(st.sampled_from(INPUTS[:-1]), min_size=1, max_size=2))
    tied = draw(st.booleans())
    embedding = units[-1] if tied else draw(st.sampled_from(INPUTS))
    weights = random_weights(draw(st.integers(1, 90)), embedding, units, tied, seed=draw(st.integers(0, 99)))
    names = format.matrices(Weights.from_dict(weights))
    return weights, {name: draw(DTYPES) for name in names}


def write_mixture(path, arrays, dtypes):
    weights = Weights.from_dict(arrays)
    rounded = {name: round_rows(rows, dtypes[name]) for name, rows in format.matrices(weights).items()}
    format.write(path, weights, {}, rounded)
    return rounded


def tensors_of(path):
    """Read by the gguf package, which gives bf16 as bytes."""
    found = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    return {name: data.view(np.uint16) if data.dtype == np.uint8 else data for name, data in found.items()}


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_a_mixture_of_types_unpacks_to_what_was_written(tmp_path_factory, mixture):
    arrays, dtypes = mixture
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    rounded = write_mixture(path, arrays, dtypes)
    weights, found = format.unpack_rounded(path)
    tensors = tensors_of(path)
    matrices = format.matrices(weights)
    for name, wanted in rounded.items():
        assert found[name].dtype == dtypes[name]
        inputs = matrices[name].shape[1]
        assert same(found[name], wanted, inputs), name
        rows, scale = reference.read_matrix(tensors, name, inputs)
        expected = (rows if scale is None else rows * scale[:, None]).astype(np.float32)
        assert (found[name].to_float(inputs) == expected).all(), name
        assert (matrices[name] == expected).all(), name


def same(found: RoundedRows, wanted: RoundedRows, inputs: int):
    pairs = [(found.scale, wanted.scale), (found.group, wanted.group), (found.weight, wanted.weight)]
    return all(a is b is None or (np.asarray(a) == b).all() for a, b in pairs)


def test_what_fills_up_is_zero(tmp_path):
    path = tmp_path / "m.gguf"
    dtypes = {"token_embd": "int4", "blk.0.x": "int4", "blk.0.h": "int4", "output": "int8"}
    write_mixture(path, random_weights(50, 33, (20,)), dtypes)
    tensors = tensors_of(path)
    assert (tensors["output.weight"][-1, :, 2:] == 0).all()  # tokens 50 to 63
    assert (tensors["output.scale"][-1, 2:] == 0).all()
    assert (tensors["blk.0.h.weight"][4:, :, 4:].view(np.uint8) == 0x88).all()  # units 20 to 31, nibbles of 8
    assert (tensors["blk.0.h.group"][4:, :, 4:] == 0).all()
    assert (tensors["blk.0.h.scale"][4:, 4:] == 0).all()
    assert (tensors["token_embd.weight"][:, 17:].view(np.uint8) == 0x88).all()  # weight 32 is in byte 16, alone
    assert (tensors["token_embd.weight"][:, 16].view(np.uint8) >> 4 == 8).all()


def test_types_and_shapes_are_those_of_the_format(tmp_path):
    path = tmp_path / "m.gguf"
    dtypes = {"token_embd": "int4", "blk.0.x": "bf16", "blk.0.h": "int8", "output": "int4"}
    write_mixture(path, random_weights(50, 33, (20,)), dtypes)
    found = {
        t.name: (t.tensor_type.name, tuple(int(n) for n in reversed(t.shape))) for t in gguf.GGUFReader(path).tensors
    }
    assert found == {
        "token_embd.weight": ("I8", (50, 20)),
        "token_embd.scale": ("F32", (50,)),
        "token_embd.group": ("I8", (50, 2)),
        "blk.0.bias": ("F32", (8, 16)),
        "blk.0.x.weight": ("BF16", (8, 17, 16, 2)),
        "blk.0.h.weight": ("I8", (8, 5, 16, 4)),
        "blk.0.h.scale": ("F32", (8, 16)),
        "output.bias": ("F32", (4, 16)),
        "output.weight": ("I8", (4, 3, 16, 4)),
        "output.scale": ("F32", (4, 16)),
        "output.group": ("I8", (4, 1, 16, 2)),
    }
    steps = fastlm.load(path).metadata["lstm.layer.scale"]
    assert list(steps) == [0, np.float32(1 / 127), np.float32(1 / 127)]


# ---- the engine --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_engine_computes_the_reference(tmp_path_factory, mixture):
    """A hidden state near the middle between two units may fall to either side, hence the tolerance; it is rare."""
    arrays, dtypes = mixture
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    write_mixture(path, arrays, dtypes)
    vocab_size = len(arrays["embedding"])
    tokens = np.random.default_rng(0).integers(0, vocab_size, 9).tolist()
    sizes = [arrays["embedding"].shape[1], *(len(w) for name, w in arrays.items() if name.endswith("recurrent_kernel"))]
    logits = reference.file_logits(tensors_of(path), sizes, vocab_size, tokens[:-1])
    expected = reference.log_softmax(logits)[np.arange(8), tokens[1:]]
    for isa in LEVELS:
        found = fastlm.load(path, isa=isa).score(tokens).logprobs[1:]
        np.testing.assert_allclose(found, expected, atol=1e-2)
        assert np.median(np.abs(found - expected)) < 1e-3


@pytest.mark.parametrize("dtype", BITS)
def test_float_file_reference_is_the_plain_reference(tmp_path, dtype):
    arrays = random_weights(40, 20, (33, 17))
    write_mixture(tmp_path / "m.gguf", arrays, dict.fromkeys(format.matrices(Weights.from_dict(arrays)), dtype))
    found = reference.file_logits(tensors_of(tmp_path / "m.gguf"), [20, 33, 17], 40, range(10))
    tolerance = {"f32": 1e-6, "bf16": 0.03, "int8": 0.1, "int4": 1}[dtype]
    np.testing.assert_allclose(found, reference.logits(arrays, range(10)), atol=tolerance)


# ---- quantize ----------------------------------------------------------------------------------------

LOSSES = {"bf16": (0.51, 0.1), "int8": (0.27, 0.5), "int4": (0.15, 4), "cells=int4,output=int8": (0.19, 3)}


@pytest.mark.parametrize("dtype", LOSSES)
def test_the_bundled_model_keeps_its_perplexity(tmp_path, stories, text, dtype):
    path = tmp_path / "m.gguf"
    report = fastlm.quantize(STORIES, path, dtype=dtype, text=text)
    size, loss = LOSSES[dtype]
    assert report.bytes_before == os.path.getsize(STORIES)
    assert report.bytes == path.stat().st_size < size * report.bytes_before
    assert abs(report.loss.percent) < loss
    assert 0 < report.loss.standard_error < 1
    before = stories.score(text, documents=True)
    after = fastlm.load(path).score(text, documents=True)
    assert report.loss.perplexity_before == before.perplexity
    assert report.loss.perplexity == after.perplexity
    assert report.loss.tokens == len(after.token_ids)
    assert report.loss.percent == pytest.approx(100 * (after.perplexity / before.perplexity - 1), abs=1e-6)
    assert [m.name for m in report.matrices] == ["blk.0.x", "blk.0.h", "blk.1.x", "blk.1.h", "output"]
    assert all(0 < m.relative_rms < 0.15 and m.largest > 0 for m in report.matrices)
    assert 0 < report.max_error < 3


def test_all_else_in_the_file_stays(tmp_path, stories):
    fastlm.quantize(STORIES, tmp_path / "m.gguf", dtype="int8")
    lm = fastlm.load(tmp_path / "m.gguf")
    changed = {"lstm.layer.scale", "lstm.test.logprobs", "lstm.test.tolerance"}
    assert set(lm.metadata) == set(stories.metadata)
    assert {key for key in lm.metadata if lm.metadata[key] != stories.metadata[key]} == changed
    assert lm.recommended == stories.recommended
    assert lm.check() == (0.0, pytest.approx(1e-5))
    assert len(lm.generate("Once upon a time", max_tokens=30, seed=1).token_ids) == 30


def test_keys_that_fastlm_does_not_know_are_carried_along(tmp_path):
    strange = {
        "x.int": 5,
        "x.negative": -5,
        "x.large": 2**63,
        "x.true": True,
        "x.real": 0.5,
        "x.text": "Grüße",
        "x.texts": ["a", ""],
        "x.bytes": array("B", [1, 255]),
        "x.doubles": array("d", [0.1]),
        "x.longs": array("q", [-(2**40)]),
    }
    format.write(tmp_path / "m.gguf", Weights.from_dict(random_weights()), {**strange, "x.none": []})
    fastlm.quantize(tmp_path / "m.gguf", tmp_path / "n.gguf", dtype="int4")
    found = fastlm.load(tmp_path / "n.gguf").metadata
    assert {key: found[key] for key in strange} == strange
    assert found["x.doubles"].typecode == "d"
    assert "lstm.test.tokens" not in found


def test_a_file_can_be_rounded_in_place_and_further(tmp_path, text):
    path = tmp_path / "m.gguf"
    path.write_bytes(resources.files("fastlm.models").joinpath("stories.gguf").read_bytes())
    mapped = fastlm.load(path)
    first = fastlm.quantize(path, path, dtype="int8")
    assert path.stat().st_size == first.bytes
    assert first.rounded_before == ()
    assert mapped.check()[0] < 1e-4  # who had it open keeps the old one
    again = fastlm.quantize(path, path, dtype="int8", text=text)
    assert again.max_error == 0
    assert again.loss.percent == again.loss.standard_error == 0
    assert {m.relative_rms for m in again.matrices} == {0}
    further = fastlm.quantize(path, path, dtype={"cells": "int4"})
    assert further.rounded_before == ("int8",)
    assert "rounded already (int8)" in str(further)
    assert [m.dtype for m in further.matrices] == ["int4"] * 4 + ["int8"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    with pytest.raises(ValueError, match=r"blk\.0\.x is in int4, and int8 cannot bring back what that lost"):
        fastlm.quantize(path, path)


def test_parts_are_told_apart(tmp_path):
    fastlm.export(random_weights(), tmp_path / "m.gguf")

    def types(dtype):
        report = fastlm.quantize(tmp_path / "m.gguf", tmp_path / "n.gguf", dtype=dtype)
        return " ".join(m.dtype for m in report.matrices)

    assert types("bf16") == "bf16 bf16 bf16 bf16"
    assert types("int8") == "int8 int8 int8 int8"
    assert types("int4") == "int8 int4 int4 int4"  # an embedding of its own costs no time
    assert types("embedding=int4") == "int4 f32 f32 f32"
    assert types("cells=int4, output=int8") == "f32 int4 int4 int8"
    assert types({"output": "bf16"}) == "f32 f32 f32 bf16"
    fastlm.quantize(tmp_path / "m.gguf", tmp_path / "m.gguf", dtype="embedding=int4")
    assert types("int4") == "int4 int4 int4 int4"


def test_a_tied_embedding_follows_the_output(tmp_path):
    path = tmp_path / "m.gguf"
    fastlm.export(random_weights(50, 20, (20,), tied=True), path)
    report = fastlm.quantize(path, tmp_path / "n.gguf", dtype="int4")
    assert [m.dtype for m in report.matrices] == ["int4"] * 3
    fastlm.quantize(path, tmp_path / "n.gguf", dtype="output=int8,embedding=int8")
    for dtype in ("embedding=int8", "output=int4,embedding=int8"):
        with pytest.raises(ValueError, match="the embedding of this model is its output matrix: give output="):
            fastlm.quantize(path, tmp_path / "n.gguf", dtype=dtype)


def test_auto_takes_the_fastest_within_the_loss(tmp_path, text, monkeypatch):
    monkeypatch.setattr(quantizer, "_ROUNDS", 1)
    path = tmp_path / "m.gguf"
    loose = fastlm.quantize(STORIES, path, dtype="auto", text=text, max_loss=1000)
    assert sorted(c.dtype for c in loose.candidates) == sorted(quantizer._CANDIDATES)
    assert loose.dtype == min(loose.candidates, key=lambda c: c.microseconds).dtype
    assert loose.bytes == path.stat().st_size
    assert re.search(rf"{re.escape(loose.dtype)} .*  chosen", str(loose))
    exact = fastlm.quantize(STORIES, path, dtype="auto", text=text, max_loss=0)
    good = [c.dtype for c in exact.candidates if c.loss.percent + c.loss.standard_error <= 0]
    assert exact.dtype == good[0]  # by time
    assert "int4" not in good
    assert fastlm.load(path).check()[0] <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_ids_are_a_text_for_a_model_without_tokenizer(tmp_path):
    fastlm.export(random_weights(), tmp_path / "m.gguf")
    ids = np.random.default_rng(0).integers(0, 50, 1500).tolist()
    report = fastlm.quantize(tmp_path / "m.gguf", tmp_path / "n.gguf", dtype="int8", text=ids)
    assert report.loss.tokens == 1500
    assert abs(report.loss.percent) < 1
    with pytest.raises(ValueError, match="no tokenizer"):
        fastlm.quantize(tmp_path / "m.gguf", tmp_path / "n.gguf", dtype="int8", text="words " * 1000)


BAD = [
    ({"dtype": "int3"}, ValueError, "dtype='int3': expected f32, bf16, int8, int4, auto"),
    ({"dtype": "float16"}, ValueError, "did you mean bf16?"),
    ({"dtype": "FP32"}, ValueError, "did you mean f32?"),
    ({"dtype": "i8"}, ValueError, "did you mean int8?"),
    ({"dtype": "q8_0"}, ValueError, "did you mean int8?"),
    ({"dtype": "q4_0"}, ValueError, "did you mean int4?"),
    ({"dtype": "int88"}, ValueError, "did you mean int8?"),
    ({"dtype": 8}, ValueError, "dtype=8: expected f32, bf16, int8, int4, auto; did you mean int8?"),
    ({"dtype": None}, ValueError, "dtype=None: expected f32"),
    ({"dtype": "cell=int4"}, ValueError, "dtype: 'cell' is none of cells, output, embedding; did you mean cells?"),
    ({"dtype": "cells=auto"}, ValueError, "cells='auto': expected f32, bf16, int8, int4"),
    ({"dtype": {"output": "i4"}}, ValueError, "output='i4': expected f32, bf16, int8, int4; did you mean int4?"),
    ({"dtype": ""}, ValueError, "dtype='': expected"),
    ({"dtype": "auto"}, ValueError, "needs a text"),
    ({"dtype": "int8", "max_loss": 1}, ValueError, "max_loss=1 is for dtype='auto'"),
    ({"dtype": "auto", "text": "x", "max_loss": -1}, ValueError, "max_loss=-1: expected percent, at least 0"),
    ({"dtype": "auto", "text": "x", "max_loss": float("nan")}, ValueError, "max_loss=nan"),
    ({"dtype": "auto", "text": "x", "max_loss": "1"}, TypeError, "max_loss='1': expected a number"),
    ({"text": "held_out.txt"}, ValueError, "(it starts with 'held_out.txt'): expected at least 1000"),
    ({"text": 5}, TypeError, "text: expected one str, the text itself, or a sequence of token ids, found int"),
    ({"text": b"abc"}, TypeError, "found bytes"),
    ({"text": ["a"] * 2000}, TypeError, "found list"),
    ({"text": [[1]] * 2000}, TypeError, "found list"),
    ({"dtype": {}}, ValueError, "dtype={}: expected a type for at least one of cells, output, embedding"),
    ({"dtype": "cells=int4,"}, ValueError, "expected each part once, as in cells=int4,output=int8"),
    ({"dtype": "cells=int4,cells=int8"}, ValueError, "expected each part once"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_arguments_are_named(tmp_path, number):
    options, error, message = BAD[number]
    with pytest.raises(error) as caught:
        fastlm.quantize(STORIES, tmp_path / "m.gguf", **options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_named(tmp_path, text):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        fastlm.quantize(tmp_path / "nowhere.gguf", tmp_path / "m.gguf")
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(fastlm.FormatError, match=r"no\.gguf"):
        fastlm.quantize(tmp_path / "no.gguf", tmp_path / "m.gguf")
    with pytest.raises(FileNotFoundError, match="missing"):
        fastlm.quantize(STORIES, tmp_path / "missing" / "m.gguf")
    with pytest.raises(TypeError, match="expected the path of a model or the name of a bundled one, found a file's by"):
        fastlm.quantize(b"GGUF", tmp_path / "m.gguf")
    fastlm.export(random_weights(), tmp_path / "ids.gguf")
    with pytest.raises(ValueError, match=r"ids\.gguf has no tokenizer, which a text needs"):
        fastlm.quantize(tmp_path / "ids.gguf", tmp_path / "m.gguf", text=text)
    with pytest.raises(ValueError, match="a text needs the tokenizer that the model was trained with"):
        fastlm.export(random_weights(), tmp_path / "m.gguf", dtype="int8", text=text)
    fastlm.quantize(STORIES, tmp_path / "m.gguf", dtype="bf16")
    with pytest.raises(ValueError, match=r"m\.gguf: some weights are rounded already; dtype='auto' starts from f"):
        fastlm.quantize(tmp_path / "m.gguf", tmp_path / "m.gguf", dtype="auto", text=text)


def test_sums_that_could_overflow_are_refused(tmp_path):
    weights = Weights.from_dict(random_weights(3, 16385, (1,)))
    format.write(tmp_path / "m.gguf", weights, {})
    assert fastlm.quantize(tmp_path / "m.gguf", tmp_path / "n.gguf", dtype="int8").bytes
    with pytest.raises(ValueError, match=r"blk\.0\.x has 16385 inputs: int4 sums at most 16384 exactly, use bf16"):
        fastlm.quantize(tmp_path / "m.gguf", tmp_path / "n.gguf", dtype="cells=int4")


# ---- export and the command --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fastlm.rounding", "fastlm.quantizer"])
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("dtype", [*BITS, "cells=int8,output=bf16"])
def test_export_rounds_what_it_has_checked(tmp_path, dtype):
    arrays = random_weights()
    report = fastlm.export(arrays, tmp_path / "m.gguf", dtype=dtype)
    assert report.path == str(tmp_path / "m.gguf")
    assert report.dtype == dtype
    assert report.bytes == (tmp_path / "m.gguf").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    largest, tolerance = fastlm.load(tmp_path / "m.gguf").check()
    if dtype == "f32":
        assert report.rounding is None
        assert report.max_error == largest < 1e-5
        return
    assert (largest, tolerance) == (0, pytest.approx(1e-5))
    tokens = list(fastlm.load(tmp_path / "m.gguf").metadata["lstm.test.tokens"])
    source = reference.log_softmax(reference.logits(arrays, tokens))[np.arange(63), tokens[1:]]
    found = fastlm.load(tmp_path / "m.gguf").score(tokens).logprobs[1:]
    assert report.max_error == pytest.approx(np.abs(found - source).max(), abs=1e-5)
    assert report.rounding.path == report.path
    assert "no text was given" in str(report)


def test_export_measures_the_loss(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50, 1200).tolist()
    report = fastlm.export(random_weights(), tmp_path / "m.gguf", dtype="int4", text=ids)
    assert report.rounding.loss.tokens == 1200
    assert report.rounding.loss.perplexity_before != report.rounding.loss.perplexity
    assert fastlm.export(random_weights(), tmp_path / "m.gguf", text=ids).rounding.loss.percent == 0


def test_export_of_a_keras_model_rounds_it(tmp_path):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    layers = keras.layers
    model = keras.Sequential([layers.Embedding(30, 8), layers.LSTM(9, return_sequences=True), layers.Dense(30)])
    model(np.zeros((1, 4), np.int32))
    report = fastlm.export(model, tmp_path / "m.gguf", dtype="int8")
    assert 1e-6 < report.max_error < 0.1
    model.layers[1].get_config = lambda: {"activation": "relu"}
    with pytest.raises(ValueError, match="activation='relu'"):
        fastlm.export(model, tmp_path / "m.gguf", dtype="int8")


def test_command_writes_and_reports(tmp_path, text, capsys):
    (tmp_path / "held_out.txt").write_text(text)
    output = str(tmp_path / "m.gguf")
    options = ["--dtype", "cells=int4,output=int8", "--text", str(tmp_path / "held_out.txt")]
    assert main(["quantize", STORIES, output, *options]) == 0
    shown = capsys.readouterr().out
    assert f"{output}: 7.58 MB → 1.33 MB, weights in cells=int4,output=int8" in shown
    assert re.search(r"perplexity \d+\.\d\d → \d+\.\d\d: \+\d\.\d\d % \(± 0\.\d\d\) on \d,\d{3} tokens", shown)
    assert re.search(r"blk\.1\.h +int4 +\d+\.\d{3}%", shown)
    assert main(["quantize", STORIES, output]) == 0
    assert "weights in int8" in capsys.readouterr().out
    assert main(["quantize", STORIES, output, "--dtype", "float16"]) == 1
    assert "did you mean bf16?" in capsys.readouterr().err
    assert main(["check", output]) == 0
