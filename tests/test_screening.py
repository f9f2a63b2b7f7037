# SPDX-License-Identifier: Apache-2.0
"""Screens of output matrices: the bounds hold, and what is chosen with them is what the whole matrix chooses."""

import os
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
from conftest import LEVELS, random_weights
from fastlm import format, screening
from fastlm.calibration import output_states, own_text, windows
from fastlm.cli import main
from fastlm.rounding import round_rows
from fastlm.screening import Screen, Statistics, Trial, best_screen, make_screen
from fastlm.weights import Weights

STORIES = str(resources.files("fastlm.models") / "stories.gguf")
TOKENS = int(os.environ.get("FASTLM_SCREEN_TOKENS", "12000"))


def rewrite(source, path, dtype, screen):
    """A model's file with all weights in this type, and with what screen(rows, bias, model) gives."""
    model = fastlm.load(source)
    weights, before = format.unpack_rounded(source)
    matrices = format.matrices(weights)
    rounded = {
        name: before[name] if before[name].dtype == dtype else round_rows(matrices[name], dtype) for name in before
    }
    rows = rounded["output"].to_float(weights.layers[-1].units)[: len(weights.output_bias)]
    fields = {key: model.metadata[key] for key in model.metadata if not key.startswith(format.WRITTEN)}
    fields = {key: value for key, value in fields.items() if not key.startswith("lstm.test.")}
    format.write(path, weights, fields, rounded, screen(rows, weights.output_bias, model))
    return str(path)


def screen_of(planes, directions):
    """A maker of screens for the model's own text."""

    def make(rows, bias, model):
        states = output_states(model, own_text(model)[:8, :64])
        return make_screen(rows, bias, Statistics.of(rows, states).directions(directions), planes)

    return make


@pytest.fixture(scope="module", params=["f32", "bf16", "int8", "int4"])
def stories(request, tmp_path_factory):
    """The bundled model with a screen that would be of no use in it: its vocabulary is small."""
    path = tmp_path_factory.mktemp("screens") / "stories.gguf"
    return rewrite(STORIES, path, request.param, screen_of(2 if request.param == "int8" else 1, 64))


@pytest.fixture(scope="module")
def int8_stories(tmp_path_factory):
    return rewrite(STORIES, tmp_path_factory.mktemp("screens") / "int8.gguf", "int8", screen_of(1, 32))


# ---- bounds ------------------------------------------------------------------------------------------


def random_case(seed, V, K):
    """Rows and inputs of very different sizes, that go together as a trained model's do."""
    r = np.random.default_rng(seed)
    mix = r.normal(size=(K, K)) * np.exp(r.normal(size=K))
    states = np.tanh(r.normal(size=(200, K)) @ mix * 0.3).astype(np.float32)
    rows = (r.normal(size=(V, K)) * np.exp(r.normal(size=(V, 1)))).astype(np.float32)
    rows[r.integers(V)] = 0
    rows[r.integers(V)] = rows[0]
    bias = (r.normal(size=V) * 10.0 ** r.integers(-3, 6)).astype(np.float32)
    return rows, bias, states


@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.sampled_from([16, 32]))
@settings(max_examples=60, deadline=None)
def test_bounds_hold(seed, V, K, planes, directions):
    rows, bias, states = random_case(seed, V, K)
    screen = make_screen(rows, bias, Statistics.of(rows, states[:100]).directions(directions), planes)
    elsewhere = np.clip(states[100:] * 3, -1, 1)
    for inputs in (states, elsewhere, np.zeros((1, K), np.float32), np.ones((1, K), np.float32)):
        trial = Trial.of(screen, rows, bias, inputs)
        slack = 1e-6 * (np.abs(trial.logits).max() + 1)  # of float32, which the engine accounts for
        assert (trial.lower <= trial.logits + slack).all()
        assert (trial.logits <= trial.upper + slack).all()


def test_signs_and_directions_pay():
    """More of either leaves less: else something is not used."""
    rows, bias, states = random_case(1, 300, 64)
    statistics = Statistics.of(rows, states)
    widths = {}
    for planes, directions in [(1, 16), (1, 32), (2, 16), (3, 32)]:
        lower, upper = make_screen(rows, bias, statistics.directions(directions), planes).bounds(states)
        widths[planes, directions] = np.median(upper - lower)
    assert widths[1, 32] < 0.9 * widths[1, 16]
    assert widths[2, 16] < 0.75 * widths[1, 16]
    assert widths[3, 32] < 0.7 * widths[1, 32]


def test_basis_is_orthonormal_and_numbers_are_within_what_a_reader_takes():
    rows, bias, states = random_case(2, 100, 40)
    screen = make_screen(rows, bias, Statistics.of(rows, states).directions(32), 2)
    P = screen.basis.astype(np.float64)
    assert np.abs(P @ P.T - np.eye(32)).max() < 1e-6
    assert (screen.spread > 0).all()
    assert screen.spread.max() == 1
    assert screen.gain.max() == 1
    assert (screen.gain >= 0).all()
    assert (screen.size >= 0).all()
    assert (screen.radius >= 0).all()
    assert np.abs(screen.along).max() <= 127


# ---- the file ----------------------------------------------------------------------------------------


def test_signs_lie_as_documented():
    r = np.random.default_rng(0)
    signs = r.random((2, 70, 21)) < 0.5
    packed = format.pack_signs(signs).view(np.uint8)
    assert packed.shape == (2, 2, 2, 128)
    for plane, row, k in [(0, 0, 0), (1, 69, 20), (0, 17, 3), (1, 33, 12), (0, 63, 15), (1, 5, 16)]:
        block, half, sixteen, within = row // 64, row % 64 // 32, row % 32 // 16, row % 16
        octet = packed[block, plane, k // 16, 64 * (k // 8 % 2) + 32 * half + 2 * within + sixteen]
        assert octet >> (k % 8) & 1 == signs[plane, row, k]


def test_a_screen_adds_a_fifth_to_a_large_int8_matrix():
    """One sign and 32 directions: bits/8 + directions + 20 bytes a row, and what does not grow with the vocabulary."""
    V, K = 10000, 650
    rows = np.random.default_rng(0).normal(size=(64, K)).astype(np.float32)
    screen = make_screen(rows, np.zeros(64, np.float32), Statistics.of(rows, np.tanh(rows)).directions(32), 1)
    fixed = sum(
        t.nbytes for name, t in format.screen_tensors(screen) if name in ("mean", "spread", "gain", "basis.weight")
    )
    each = sum(t.nbytes for _, t in format.screen_tensors(screen)) - fixed
    assert fixed + each * (V / 64) < 0.22 * V * K


def test_weights_are_unpacked_without_it(int8_stories, tmp_path):
    plain = rewrite(int8_stories, tmp_path / "plain.gguf", "int8", lambda *_: None)
    assert os.path.getsize(plain) < os.path.getsize(int8_stories)
    one, other = format.unpack(plain), format.unpack(int8_stories)
    for name, array in one.to_dict().items():
        assert (array == other.to_dict()[name]).all()
    fastlm.quantize(int8_stories, tmp_path / "again.gguf", dtype="int8")
    assert not fastlm.load(tmp_path / "again.gguf")._engine.info()["screened"]


def damaged(path, name, change):
    """The file's bytes with one tensor changed in place."""
    data = bytearray(Path(path).read_bytes())
    tensors = {one[0]: one for one in fastlm.load(path)._engine.tensors()}
    _, _, offset, size, kind = tensors[name]
    values = np.frombuffer(data[offset : offset + size], {0: np.float32, 24: np.int8}[kind]).copy()
    change(values)
    data[offset : offset + size] = values.tobytes()
    return bytes(data)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("mean", 1.5, "from -1 to 1, found 1.5"),
        ("spread", -0.5, "from 0 to 1, found -0.5"),
        ("gain", 2, "from 0 to 1, found 2"),
        ("radius", -1, "from 0 to 1.09951e+12, found -1"),
        ("size", np.nan, "not a number"),
        ("shift", np.inf, "not a number, infinite"),
        ("along.scale", -1, "expected numbers from 0, found -1"),
        ("basis.weight", 2.0**41, "above 2^40"),
    ],
)
def test_numbers_that_could_overflow_are_refused(int8_stories, part, value, message):
    data = damaged(int8_stories, f"output.screen.{part}", lambda values: values.__setitem__(3, value))
    with pytest.raises(fastlm.FormatError, match=re.escape(message)):
        fastlm.load(data)


def test_a_screen_that_lies_is_found_out(int8_stories):
    data = damaged(int8_stories, "output.screen.radius", lambda values: values.__imul__(0))
    model = fastlm.load(data, screening="checked")
    with pytest.raises(RuntimeError, match=r"screen of its output matrix is wrong: \d+ bounds or tokens differ"):
        model.generate("They saw", max_tokens=5, temperature=0)
    assert fastlm.load(data, screening="never").generate("They saw", max_tokens=5, temperature=0).text


# ---- one answer --------------------------------------------------------------------------------------


def random_options(r):
    """Controls of every kind that a screen meets, and some that need all logits."""
    options = {"seed": int(r.integers(2**32)), "temperature": float(r.choice([0, 0.5, 1, 1, 1.5, 4]))}
    if options["temperature"]:
        options["top_k"] = int(r.choice([0, 0, 1, 7, 40, 5000]))
        options["min_p"] = float(r.choice([0, 0, 0.03, 0.3]))
        options["top_p"] = float(r.choice([1, 1, 0.95, 0.9, 0.3]))
        options["typical_p"] = float(r.choice([1, 1, 1, 1, 0.9]))
    if r.random() < 0.3:
        options["logit_bias"] = {int(t): float(r.choice([-100, -3, 4, 25])) for t in r.integers(0, 2048, 5)}
    if r.random() < 0.4:
        options |= {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "dry_multiplier": 0.8}
    if r.random() < 0.2:
        options |= {"no_repeat_ngram_size": 2, "min_tokens": 4, "bad_words": [" the", "."]}
    if r.random() < 0.1:
        options["logprobs"] = 2
    return options


def random_prompts(r, model):
    text = "They saw the old rabbit in the woods, and it said: 'Come with me, my dear Mr. Fox! Qwertz 4711 xx'"
    many = int(r.choice([1, 1, 1, 2, 5, 11]))
    return [
        text[: int(r.integers(0, len(text)))] if r.random() < 0.7 else [int(t) for t in r.integers(0, 2048, 3)]
        for _ in range(many)
    ]


def test_every_control_chooses_what_the_whole_matrix_chooses(stories):
    """Each bound is checked, and each token, on texts of the bundled model's and on nonsense, with all controls."""
    whole = fastlm.load(stories, screening="never", threads=1)
    screened = [fastlm.load(stories, screening="checked", threads=n) for n in (1, 2)]
    r = np.random.default_rng(TOKENS)
    drawn = seen = 0
    while drawn < TOKENS // 4:  # four types of weights
        options, prompts = random_options(r), random_prompts(r, whole)
        expected = whole.generate(prompts, max_tokens=40, **options)
        found = screened[int(r.integers(2))].generate(prompts, max_tokens=40, **options)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected], options
        drawn += sum(len(one.token_ids) for one in expected)
        seen += found[0].timings["screened_tokens"]
    assert seen > drawn / 4


@pytest.mark.parametrize("isa", LEVELS)
def test_every_level_has_the_same_bounds(int8_stories, isa):
    """As many rows are left on every level: the bounds are the same bits, not only the text."""
    first = fastlm.load(int8_stories, screening="always", isa="scalar", threads=1)
    model = fastlm.load(int8_stories, screening="checked", isa=isa, threads=1)
    for options in ({"temperature": 0.0}, {"seed": 5, "top_k": 0, "top_p": 1.0}, {"seed": 6, "top_k": 20}):
        one, other = (m.generate("They saw", max_tokens=12, **options) for m in (first, model))
        assert one.token_ids == other.token_ids
        assert one.timings["rows_finished"] == other.timings["rows_finished"] > 0


@pytest.mark.parametrize("vocab", [*range(1, 18), 63, 64, 65, 129])
@pytest.mark.parametrize("kind", ["plain", "equal rows", "zero rows", "huge biases", "saturated"])
def test_hard_cases(tmp_path, vocab, kind):
    arrays = random_weights(vocab, 5, (7, 21), seed=vocab)
    if kind == "equal rows":
        arrays["output.kernel"][:] = arrays["output.kernel"][:, :1]
        arrays["output.bias"][:] = 0
    elif kind == "zero rows":
        arrays["output.kernel"][:, ::2] = 0
    elif kind == "huge biases":
        arrays["output.bias"] = np.where(np.arange(vocab) % 3 == 1, 3e7, -2e9).astype(np.float32)
    elif kind == "saturated":
        arrays["lstm.1.kernel"] *= 1000
        arrays["output.kernel"] *= 1e5
    weights = Weights.from_dict(arrays)
    plain = tmp_path / "plain.gguf"
    format.write(plain, weights, {})
    for dtype in ("f32", "int8"):
        path = rewrite(str(plain), tmp_path / "screened.gguf", dtype, screen_of_tokens(vocab))
        whole, checked = fastlm.load(path, screening="never"), fastlm.load(path, screening="checked")
        for options in (
            {"temperature": 0.0},
            {"seed": 3},
            {"seed": 4, "top_k": 3},
            {"seed": 5, "repetition_penalty": 2.0},
        ):
            one, other = (m.generate([0], max_tokens=10, **options) for m in (whole, checked))
            assert one.token_ids == other.token_ids


def screen_of_tokens(vocab):
    def make(rows, bias, model):
        tokens = np.arange(40, dtype=np.int32).reshape(2, 20) % vocab
        return make_screen(rows, bias, Statistics.of(rows, output_states(model, tokens)).directions(16), 1)

    return make


def test_top_p_asks_the_winner(int8_stories):
    """Most winners are in the set; the others cost the whole matrix, and are the same all the same."""
    whole, screened = (fastlm.load(int8_stories, screening=one, threads=1) for one in ("never", "checked"))
    for options in ({"top_p": 0.9}, {"top_p": 0.5, "min_p": 0.1}, {"top_p": 1e-6}, {"top_p": 0.99, "top_k": 5}):
        for samplers in (None, ["top_p", "top_k", "min_p", "temperature"], ["temperature", "min_p", "top_p", "top_k"]):
            given = {"seed": 3, "temperature": 0.8, "max_tokens": 40, "top_k": 0, **options, "samplers": samplers}
            one, other = (model.generate("They saw", **given) for model in (whole, screened))
            assert one.token_ids == other.token_ids
            assert other.timings["screened_tokens"] >= 40


def test_streams_and_sessions_are_screened(int8_stories):
    whole, screened = (fastlm.load(int8_stories, screening=one) for one in ("never", "checked"))
    for options in ({"seed": 8, "top_k": 0, "top_p": 1.0}, {"seed": 9, "top_k": 30}):
        assert "".join(whole.stream("They saw", max_tokens=30, **options)) == "".join(
            screened.stream("They saw", max_tokens=30, **options)
        )


# ---- where it is of use ------------------------------------------------------------------------------


def test_it_switches_itself_off_where_it_saves_nothing(int8_stories):
    """The bundled model is no case for it: after a few tokens all rows are computed."""
    useful = fastlm.load(int8_stories, screening="useful", threads=1)
    text = useful.generate("They saw", max_tokens=60, temperature=1.0, top_k=0, top_p=1.0, seed=1)
    assert 0 < text.timings["screened_tokens"] < 20
    always = fastlm.load(int8_stories, screening="always", threads=1)
    same = always.generate("They saw", max_tokens=60, temperature=1.0, top_k=0, top_p=1.0, seed=1)
    assert same.timings["screened_tokens"] >= len(same.token_ids)
    assert same.token_ids == text.token_ids


def test_what_needs_all_logits_is_not_screened(int8_stories):
    model = fastlm.load(int8_stories, screening="always")
    for options in (
        {"top_p": 0.9, "logit_bias": {5: 1.0}},
        {"typical_p": 0.9},
        {"mirostat_tau": 3.0},
        {"logprobs": True},
    ):
        timings = model.generate("They saw", max_tokens=5, seed=1, **options).timings
        assert timings["screened_tokens"] == timings["rows_finished"] == 0
    assert model.generate("They saw", max_tokens=5, num_beams=2).timings["screened_tokens"] == 0


def peaked(V=5000, K=256, seed=0):
    """A matrix of which most rows lose by far, and its inputs: what a large vocabulary is like."""
    r = np.random.default_rng(seed)
    topics = r.normal(size=(16, K))
    states = np.tanh(r.normal(size=(400, 16)) @ topics * 0.3 + 0.02 * r.normal(size=(400, K))).astype(np.float32)
    rows = (r.normal(size=(V, 16)) @ topics * 0.1 + 0.01 * r.normal(size=(V, K))).astype(np.float32)
    return rows, np.zeros(V, np.float32), states


def test_the_best_screen_depends_on_the_type():
    rows, bias, states = peaked()
    for dtype in ("f32", "int8"):
        screen = best_screen(rows, bias, dtype, states)
        assert isinstance(screen, Screen)
        share = 16 * Trial.of(screen, rows, bias, states).left(seed=0).mean()  # of panels, at most
        assert screening.cost(screen, dtype, share, len(rows)) < 0.8 * {"f32": 4, "int8": 1}[dtype]
    r = np.random.default_rng(0)
    noise, anything = (r.normal(size=(500, 256)).astype(np.float32) for _ in range(2))  # nothing stands out
    assert best_screen(noise, bias[:500], "int8", np.tanh(anything)) is None
    assert best_screen(np.zeros((20, 5000), np.float32), bias[:20], "int8", np.zeros((9, 5000), np.float32)) is None


def test_quantize_adds_a_screen(tmp_path, capsys):
    """By the command, to a model with a large vocabulary; and says so where there is none."""
    rows, bias, _states = peaked()
    arrays = random_weights(len(rows), 8, (256,), seed=1)
    arrays["output.kernel"], arrays["output.bias"] = rows.T * 4, bias
    source, path = tmp_path / "peaked.gguf", tmp_path / "screened.gguf"
    format.write(source, Weights.from_dict(arrays), {})
    text = [int(t) for t in np.random.default_rng(0).integers(0, 5000, 1200)]
    report = fastlm.quantize(source, path, dtype="int8", text=text, screen=True)
    assert report.screen is not None
    assert report.screen.planes >= 1
    assert report.screen.directions % 16 == 0
    assert 0 < report.screen.greedy < 0.2
    assert report.screen.bytes > 5000 * 32
    assert re.search(
        r"screen: [\d.]+ MB, \d bits? a weight and \d+ directions; leaves [\d.]+% of the rows", str(report)
    )
    model = fastlm.load(path, screening="checked")
    assert model.generate([5], max_tokens=40, seed=1).timings["rows_finished"] < 40 * 5000 * 0.3
    assert main(["quantize", STORIES, str(tmp_path / "none.gguf"), "--screen"]) == 0
    assert "no screen: it would not save a fifth" in capsys.readouterr().out
    with pytest.raises(TypeError, match="screen='yes': expected True or False, found str"):
        fastlm.quantize(source, path, screen="yes")


def test_load_names_what_it_takes(int8_stories):
    with pytest.raises(ValueError, match="screening='on': expected useful, never, always, checked"):
        fastlm.load(int8_stories, screening="on")


def test_windows_are_spread_over_a_text():
    tokens = list(range(10000))
    found = windows(tokens)
    assert found.shape == (32, 256)
    assert found[0, 0] == 0
    assert found[-1, -1] == 9999
    assert windows(tokens[:300]).shape == (1, 256)
    assert windows(tokens[:9]).shape == (1, 9)
