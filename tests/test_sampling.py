# SPDX-License-Identifier: Apache-2.0
"""The next token: noise, sets and frequencies against the reference in tests/reference.py."""

from array import array

import numpy as np
import pytest

import fastlm
import reference
from conftest import LEVELS, Reader, random_weights
from fastlm.format import write
from fastlm.weights import Weights

CLOSE = 1e-4  # two keys nearer than this may change places in float32


def model_of_logits(path, logits):
    """A model that predicts the same logits whatever it reads."""
    weights = random_weights(len(logits), 3, (2,))
    weights["output.kernel"] = np.zeros((2, len(logits)), np.float32)
    weights["output.bias"] = np.asarray(logits, np.float32)
    write(path, Weights.from_dict(weights), {})
    return fastlm.load(path)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_reference_generator_is_philox(counter, key, words):
    """Known answers of Random123."""
    assert reference.philox(counter, key) == words


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 63, 64, 65, 200])
@pytest.mark.parametrize("isa", LEVELS)
def test_noise_is_the_generator_s(tmp_path, vocab, isa):
    """With equal logits the winner is the token with the most noise."""
    model_of_logits(tmp_path / "m.gguf", np.zeros(vocab))
    model = fastlm.load(tmp_path / "m.gguf", isa=isa)
    seed = 0x123456789ABCDEF1
    for index, completion in enumerate(
        model.generate([0, 0, 0], n=2, max_tokens=40, temperature=1.0, top_k=0, top_p=1.0, seed=seed)
    ):
        for position, token in enumerate(completion.token_ids, start=3):
            expected, margin = reference.draw(np.zeros(vocab), position, seed, index=index)
            assert token == expected or margin < CLOSE


OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 0.7, "top_k": 100},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 0.8, "top_p": 0.5},
    {"temperature": 1.5, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 30, "top_p": 0.6},
    {"temperature": 1.0, "top_k": 299, "top_p": 0.999},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_equal_reference(tmp_path, options):
    """Over a hundred different logit vectors of one model, peaked and flat."""
    path = tmp_path / "m.gguf"
    weights = random_weights(300, 40, (40,), scale=2.0)
    weights["output.kernel"] *= 6
    fastlm.export(weights, path)
    model = fastlm.load(path)
    misses = 0
    for token in range(100):
        reader = Reader(model)
        reader.feed(array("i", [token]))
        logits = np.array(reader.logits(), np.float64)
        full = {"top_k": 0, "top_p": 1.0, **options}
        drawn = model.generate([token], max_tokens=1, seed=token, **full).token_ids[0]
        expected, margin = reference.draw(logits, 1, token, **options)
        if drawn != expected:
            misses += 1
            assert margin < CLOSE or on_the_edge(logits, drawn, options)
    assert misses <= 2


def on_the_edge(logits, token, options):
    """Whether rounding may decide that a token just enters or leaves the nucleus."""
    top_p = options.get("top_p", 1.0)
    return any(
        token in reference.kept(logits, **{**options, "top_p": p}) for p in (top_p - 1e-5, min(1.0, top_p + 1e-5))
    )


def test_equal_logits_are_kept_by_rising_id(tmp_path):
    model = model_of_logits(tmp_path / "m.gguf", [1.0] * 100)
    completions = model.generate([0], n=200, max_tokens=3, temperature=1.0, top_k=7, seed=0)
    assert {t for c in completions for t in c.token_ids} == set(range(7))
    assert model.generate([0], max_tokens=3, temperature=0.0).token_ids == [0, 0, 0]


def test_zeros_of_either_sign_are_equal(tmp_path):
    model = model_of_logits(tmp_path / "m.gguf", [-0.0, 0.0, -0.0, 0.0])
    completions = model.generate([0], n=100, max_tokens=1, temperature=1.0, top_k=2, seed=0)
    assert {t for c in completions for t in c.token_ids} == {0, 1}
    assert model.generate([0], max_tokens=1, temperature=0.0).token_ids == [0]


@pytest.mark.parametrize("options", [{}, {"top_k": 12}, {"top_p": 0.8}, {"temperature": 0.5, "top_p": 0.9}], ids=str)
def test_frequencies_pass_chi_square(tmp_path, options):
    logits = np.linspace(-3, 2, 40)[np.random.default_rng(0).permutation(40)].astype(np.float32)
    model = model_of_logits(tmp_path / "m.gguf", logits)
    options = {"temperature": 1.0, **options}
    count = 40_000
    drawn = np.bincount(model.generate([0], max_tokens=count, seed=1, **options).token_ids, minlength=40)
    ids = reference.kept(logits.astype(np.float64), **options)
    p = np.exp(logits[ids].astype(np.float64) / options["temperature"])
    expected = np.zeros(40)
    expected[ids] = count * p / p.sum()
    assert not drawn[expected == 0].any()
    chi_square = ((drawn - expected)[ids] ** 2 / expected[ids]).sum()
    freedom = len(ids) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)  # four standard deviations


def test_neutral_controls_change_nothing(lm):
    plain = lm.generate("x", max_tokens=50, temperature=1.0, seed=9).token_ids
    assert lm.generate("x", max_tokens=50, temperature=1.0, top_k=0, top_p=1.0, seed=9).token_ids == plain
    assert lm.generate("x", max_tokens=50, temperature=1.0, top_k=257, seed=9).token_ids == plain
    assert lm.generate("x", max_tokens=50, temperature=1.0, top_k=10**6, seed=9).token_ids == plain


def test_tiny_temperature_is_greedy(lm):
    greedy = lm.generate("x", max_tokens=30, temperature=0.0).token_ids
    for temperature in (1e-6, 1e-30, 5e-324):
        options = {"max_tokens": 30, "temperature": temperature, "seed": 1}
        assert lm.generate("x", **options).token_ids == greedy
        assert lm.generate("x", top_p=0.9, **options).token_ids == greedy
