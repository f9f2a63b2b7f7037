# SPDX-License-Identifier: Apache-2.0
"""Every sampling control against its definition (tests/controls_reference.py), on random logits."""

import numpy as np
import pytest

import controls_reference as definition
import fastlm
from conftest import LEVELS
from test_sampling import model_of_logits

SLACK = 2e-6
SIZES = (2, 17, 65, 1000, 5000)
VECTORS = 1000


def random_logits(random, size):
    spread = random.choice([0.1, 1, 3, 10])
    return random.normal(0, spread, size).astype(np.float32)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Models of equal logits, by vocabulary size: a bias for each token makes them any logits."""
    folder = tmp_path_factory.mktemp("flat")
    return {size: model_of_logits(folder / f"{size}.gguf", np.zeros(size)) for size in SIZES}


def left(model, z, **options):
    """The set that controls leave, and its log-probabilities (of others minus infinity)."""
    bias = dict(enumerate(z.tolist()))
    neutral = {"temperature": 1.0}
    logprobs = np.full(len(z), -np.inf)
    for token, logprob in model.next_tokens([0], None, as_ids=True, logit_bias=bias, **{**neutral, **options}):
        logprobs[token] = logprob
    return logprobs > -np.inf, logprobs


def check_probabilities(z, kept, logprobs, temperature):
    expected = z.astype(np.float64)[kept] / temperature
    expected -= np.logaddexp.reduce(expected)
    assert np.abs(np.exp(logprobs[kept]) - np.exp(expected)).max() < 1e-6


RESTRICTIONS = {
    "top_k": lambda r, size: int(r.integers(1, size + 2)),
    "top_p": lambda r, size: float(r.uniform(0.01, 1)),
    "min_p": lambda r, size: float(10 ** r.uniform(-4, 0)),
    "epsilon_cutoff": lambda r, size: float(10 ** r.uniform(-5, -0.5)),
    "eta_cutoff": lambda r, size: float(10 ** r.uniform(-5, -0.5)),
    "top_n_sigma": lambda r, size: float(r.uniform(0.1, 4)),
}


@pytest.mark.parametrize("name", RESTRICTIONS)
def test_a_restriction_keeps_the_set_that_is_defined(flat, name):
    random = np.random.default_rng(1)
    borders = 0
    for round in range(VECTORS):
        size = SIZES[round % len(SIZES)]
        z, temperature = random_logits(random, size), float(random.choice([0.3, 1.0, 1.7]))
        value = RESTRICTIONS[name](random, size)
        kept, logprobs = left(flat[size], z, temperature=temperature, **{name: value})
        wide, narrow = (getattr(definition, name)(z / temperature, value, slack) for slack in (SLACK, -SLACK))
        assert not ((narrow & ~kept) | (kept & ~wide)).any(), (name, value, size, temperature)
        borders += int((wide != narrow).any())
        check_probabilities(z, kept, logprobs, temperature)
    assert borders < VECTORS / 10  # else the slack would hide what it should not


def test_typical_p_keeps_what_is_nearest_to_the_entropy(flat):
    random = np.random.default_rng(2)
    for round in range(VECTORS):
        size = SIZES[round % len(SIZES)]
        z, temperature, p = (
            random_logits(random, size),
            float(random.choice([0.3, 1.0, 1.7])),
            random.uniform(0.05, 0.99),
        )
        kept, logprobs = left(flat[size], z, temperature=temperature, typical_p=float(p))
        assert definition.is_typical(z / np.float64(temperature), kept, p, 5e-6), (round, size, temperature, p)
        check_probabilities(z, kept, logprobs, temperature)


def test_xtc_takes_out_all_that_reach_the_threshold_but_one(flat):
    random = np.random.default_rng(3)
    for round in range(VECTORS):
        size = SIZES[round % len(SIZES)]
        z, threshold = random_logits(random, size), float(10 ** random.uniform(-4, -0.31))
        kept, logprobs = left(flat[size], z, xtc_probability=1.0, xtc_threshold=threshold)
        assert any(np.array_equal(kept, definition.xtc(z, threshold, slack)) for slack in (SLACK, -SLACK))
        check_probabilities(z, kept, logprobs, 1)


def test_steps_see_what_those_before_have_left(flat):
    """Also in another order, and behind a list as well as among all tokens."""
    random = np.random.default_rng(4)
    names = [*RESTRICTIONS, "temperature"]
    for round in range(VECTORS):
        size = SIZES[1:][round % 4]
        z, temperature = random_logits(random, size), float(random.choice([0.5, 1.5]))
        order = list(random.permutation(names)[: random.integers(2, len(names) + 1)])
        values = {name: RESTRICTIONS[name](random, size) for name in order if name != "temperature"}
        kept, logprobs = left(flat[size], z, temperature=temperature, samplers=["logit_bias", *order], **values)
        sets = []
        for slack in (SLACK, -SLACK):
            expected, unit = np.ones(size, bool), 1.0
            for name in order:
                if name == "temperature":
                    unit = temperature
                    continue
                masked = np.where(expected, z.astype(np.float64), -np.inf) / unit
                expected &= getattr(definition, name)(masked, values[name], slack)
            sets.append(expected)
        if np.array_equal(*sets):
            assert np.array_equal(kept, sets[0]), (round, order, values)
        check_probabilities(z, kept, logprobs, temperature)


@pytest.mark.parametrize("isa", LEVELS)
def test_drawn_as_often_as_it_says(tmp_path, isa):
    """Chi-square over 65536 tokens, of each control's own set."""
    random = np.random.default_rng(5)
    z = random.normal(0, 1.5, 40).astype(np.float32)
    model_of_logits(tmp_path / "m.gguf", z)
    model = fastlm.load(tmp_path / "m.gguf", isa=isa)
    ways = [{"typical_p": 0.7}, {"min_p": 0.05, "temperature": 1.4}, {"top_n_sigma": 1.0}, {"eta_cutoff": 0.03}]
    ways += [{"xtc_probability": 1.0, "xtc_threshold": 0.05}, {"repetition_penalty": 1.5}]
    for seed, options in enumerate(ways):
        expected = dict(model.next_tokens([7], None, as_ids=True, **options))
        drawn = model.generate([7], n=2**16, max_tokens=1, seed=seed, **options)
        counts = np.bincount([one.token_ids[0] for one in drawn], minlength=len(z))
        p = np.array([np.exp(expected.get(token, -np.inf)) for token in range(len(z))])
        assert not counts[p == 0].any()
        often = p * 2**16 > 5
        chi2 = ((counts - p * 2**16)[often] ** 2 / (p * 2**16)[often]).sum()
        free = often.sum() - 1
        assert chi2 < free + 5 * np.sqrt(2 * free) + 10, (options, chi2, free)


def test_xtc_acts_as_often_as_it_says(tmp_path):
    model = model_of_logits(tmp_path / "m.gguf", np.log([0.5, 0.3, 0.2]))
    drawn = model.generate([0], n=2**15, max_tokens=1, seed=3, xtc_probability=0.25, xtc_threshold=0.25)
    first = sum(one.token_ids == [0] for one in drawn) / 2**15
    assert abs(first - 0.75 * 0.5) < 0.012


# ---- controls that look back ---------------------------------------------------------------------------


def greedy(model, prompt, count, **options):
    return model.generate(prompt, max_tokens=count, temperature=0, **options).token_ids


def greedy_by_definition(z, prompt, count, change):
    history, written = list(prompt), [0] * len(prompt)
    for _ in range(count):
        history.append(int(definition.ranked(change(z.astype(np.float64), history, written))[0]))
        written.append(1)
    return history[len(prompt) :]


def looking_back(random, size):
    """A control's options, and what it does to logits."""
    window = int(random.choice([0, 5, 40]))
    repetition, frequency, presence = random.uniform(0.7, 2), random.uniform(-0.3, 2), random.uniform(-0.3, 2)
    n, allowed = int(random.integers(1, 4)), int(random.integers(1, 4))
    words = [random.integers(0, size, random.integers(1, 4)).tolist() for _ in range(20)]
    d = definition
    return [
        (
            {
                "repetition_penalty": repetition,
                "frequency_penalty": frequency,
                "presence_penalty": presence,
                "penalty_window": window,
            },
            lambda z, history, written: d.penalise(z, history, written, window, repetition, frequency, presence),
        ),
        ({"no_repeat_ngram_size": n + 1}, lambda z, history, written: d.ban_ngrams(z, history, n + 1)),
        ({"bad_words": words}, lambda z, history, written: d.ban_words(z, history, words)),
        (
            {"dry_multiplier": 0.8, "dry_allowed_length": allowed, "dry_window": window},
            lambda z, history, written: d.dry(z, history, 0.8, 1.75, allowed, (), window),
        ),
    ]


@pytest.mark.parametrize("which", range(4), ids=["penalties", "ngrams", "words", "dry"])
def test_what_looks_back_changes_what_it_should(tmp_path, which):
    random = np.random.default_rng(6 + which)
    for round in range(60):
        size = int(random.choice([3, 8, 30, 200]))
        z = random.normal(0, 2, size).astype(np.float32)
        model = model_of_logits(tmp_path / "m.gguf", z)
        options, change = looking_back(random, size)[which]
        prompt = random.integers(0, size, random.integers(1, 30)).tolist()
        expected = greedy_by_definition(z, prompt, 60, change)
        found = model.generate(prompt, max_tokens=60, temperature=0, **options)
        if found.finish_reason == "unsatisfiable":
            continue
        assert found.token_ids == expected, (round, options)


def test_a_lone_token_that_may_not_come_twice_ends_the_text(tmp_path):
    model = model_of_logits(tmp_path / "m.gguf", np.zeros(3))
    completion = model.generate([0], max_tokens=10, no_repeat_ngram_size=1, seed=1)
    assert sorted(completion.token_ids) == [1, 2]
    assert completion.finish_reason == "unsatisfiable"


def test_repeats_end_the_text_where_they_are_seen(tmp_path):
    random = np.random.default_rng(7)
    for _ in range(40):
        z = random.normal(0, 3, 6)
        model, times = model_of_logits(tmp_path / "m.gguf", z), int(random.integers(2, 5))
        whole = model.generate([0], max_tokens=400, seed=5, temperature=1.0).token_ids
        ended = model.generate([0], max_tokens=400, seed=5, temperature=1.0, stop_repeats=times)
        places = (n for n in range(1, 401) if definition.repeats(whole[:n], times))
        expected = next(places, None)
        assert ended.token_ids == whole[:expected]
        assert ended.finish_reason == ("length" if expected is None else "repetition")


def test_mirostat_holds_the_surprise(tmp_path):
    """Against its definition, token by token; and the mean surprise comes near what is aimed at."""
    z = np.random.default_rng(8).normal(0, 2, 500).astype(np.float32)
    model = model_of_logits(tmp_path / "m.gguf", z)
    tau, eta = 4.0, 0.1
    tokens = model.generate([0], max_tokens=400, seed=2, mirostat_tau=tau, mirostat_eta=eta).token_ids
    mu, p = 2 * tau, definition.softmax(z.astype(np.float64))
    order, surprises = definition.ranked(z), []
    for token in tokens:
        kept = max(1, int((-np.log2(p[order]) <= mu + 1e-4).sum()))
        assert token in order[:kept]
        surprises.append(-np.log2(p[token] / p[order[:kept]].sum()))
        mu -= eta * (surprises[-1] - tau)
    assert abs(np.mean(surprises[100:]) - tau) < 0.3


def test_contrastive_decoding(tmp_path):
    random = np.random.default_rng(9)
    strong, weak = random.normal(0, 2, 50).astype(np.float32), random.normal(0, 2, 50).astype(np.float32)
    model, amateur = model_of_logits(tmp_path / "a.gguf", strong), model_of_logits(tmp_path / "b.gguf", weak)
    p = definition.softmax(strong.astype(np.float64))
    for alpha, beta in ((0.1, 0.5), (0.01, 2.0), (1.0, 0.5)):
        scores = np.where(p >= alpha * p.max(), (1 + beta) * strong - beta * weak, -np.inf)
        options = {"contrastive_model": amateur, "contrastive_alpha": alpha, "contrastive_beta": beta}
        assert greedy(model, [0], 3, **options) == [int(scores.argmax())] * 3
        drawn = model.generate([0], n=2000, max_tokens=1, seed=1, temperature=1.0, **options)
        assert {one.token_ids[0] for one in drawn} <= set(np.flatnonzero(scores > -np.inf).tolist())


def test_a_second_model_reads_what_the_first_reads(tmp_path):
    """One at a time, side by side, and n of one prompt: the same texts."""
    from conftest import random_weights

    for name, seed in (("a", 1), ("b", 2)):
        fastlm.export(random_weights(30, 8, (12, 9), seed=seed), tmp_path / f"{name}.gguf")
    model, amateur = fastlm.load(tmp_path / "a.gguf"), fastlm.load(tmp_path / "b.gguf")
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]
    options = {"contrastive_model": amateur, "contrastive_beta": 1.0, "max_tokens": 30, "seed": 3, "temperature": 1.0}
    together = [one.token_ids for one in model.generate(prompts, **options)]
    assert together == [model.generate(prompt, **options).token_ids for prompt in prompts]
    assert model.generate(prompts[0], n=3, **options)[0].token_ids == together[0]
    assert together != [one.token_ids for one in model.generate(prompts, max_tokens=30, seed=3, temperature=1.0)]


@pytest.mark.parametrize("penalty", [1e-38, 1e-46, 100.0])
@pytest.mark.parametrize("restriction", [{"min_p": 0.1}, {"top_n_sigma": 1.0}, {"mirostat_tau": 3.0}, {"top_p": 0.5}])
def test_penalties_beyond_measure_draw_tokens_all_the_same(lm, penalty, restriction):
    found = lm.generate("once upon", max_tokens=5, seed=1, repetition_penalty=penalty, **restriction)
    assert all(0 <= token < 257 for token in found.token_ids)

    def extreme(tokens, logits):
        logits[:] = np.where(logits > 0, 3e38, -3e38)

    lm.generate("once", max_tokens=5, seed=1, repetition_penalty=0.5, logits_processor=extreme, **restriction)
