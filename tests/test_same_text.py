# SPDX-License-Identifier: Apache-2.0
"""The same seed gives the same text, however it is asked for: 500 random sets of options."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastlm
from conftest import LEVELS

PROMPTS = ["", "ab", "once upon a time", "x" * 40, "the cat\n"]


def maybe(strategy):
    return st.one_of(st.none(), strategy)


def unit(least=0.01, most=1.0):
    return st.floats(least, most, allow_nan=False)


RESTRICTING = {
    "top_k": st.integers(1, 300),
    "top_p": unit(),
    "min_p": unit(0.0, 0.5),
    "typical_p": unit(),
    "epsilon_cutoff": unit(0.0, 0.2),
    "eta_cutoff": unit(0.0, 0.2),
    "top_n_sigma": unit(0.1, 4.0),
    "xtc_probability": unit(0.0, 1.0),
}
CHANGING = {
    "repetition_penalty": unit(0.5, 2.0),
    "presence_penalty": unit(-2.0, 2.0),
    "frequency_penalty": unit(-2.0, 2.0),
    "dry_multiplier": unit(0.1, 2.0),
    "logit_bias": st.dictionaries(st.integers(0, 256), unit(-9.0, 9.0), min_size=1, max_size=4),
    "no_repeat_ngram_size": st.integers(2, 4),
    "bad_words": st.lists(st.text("abco n", min_size=1, max_size=3), min_size=1, max_size=4),
    "min_tokens": st.integers(1, 12),
    "stop_token_ids": st.lists(st.integers(0, 256), min_size=1, max_size=9),
    "stop": st.lists(st.text("abco n", min_size=1, max_size=2), min_size=1, max_size=2),
    "stop_repeats": st.integers(2, 4),
}


@st.composite
def option_sets(draw):
    options = {"max_tokens": draw(st.integers(12, 30)), "seed": draw(st.integers(0, 2**64 - 1))}
    if draw(st.booleans()):
        options["temperature"] = draw(st.sampled_from([0, 0.3, 1.0, 2.5]))
    names = draw(st.sets(st.sampled_from(sorted(CHANGING)), max_size=4))
    options.update({name: draw(CHANGING[name]) for name in sorted(names)})
    if options.get("temperature") != 0:
        if draw(st.integers(0, 5)) == 0:
            options["mirostat_tau"] = draw(unit(0.5, 8.0))
        else:
            names = draw(st.sets(st.sampled_from(sorted(RESTRICTING)), max_size=3))
            options.update({name: draw(RESTRICTING[name]) for name in sorted(names)})
    return options


@pytest.fixture(scope="module")
def models(byte_model):
    """One for each level, with one thread and two in turn, with and without caches."""
    caches = [{}, {"prefix_cache_mb": 0}, {"row_cache_mb": 0}]
    return [
        fastlm.load(byte_model, isa=isa, threads=1 + n % 2, **caches[n % 3])
        for n, isa in enumerate([*LEVELS, LEVELS[0], LEVELS[-1]])
    ]


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(options=option_sets(), prompt=st.sampled_from(PROMPTS), place=st.integers(0, 4))
def test_the_same_text_however_it_is_asked_for(models, options, prompt, place):
    model = models[-1]
    expected = model.generate(prompt, **options)
    told = (expected.text, expected.token_ids, expected.finish_reason, expected.stop_reason)

    def check(found):
        assert (found.text, found.token_ids, found.finish_reason, found.stop_reason) == told

    for other in models[:-1]:
        check(other.generate(prompt, **options))
    batch = [PROMPTS[(place + n) % 5] for n in range(4)]
    batch[place % 4] = prompt
    check(model.generate(batch, **options)[place % 4])
    assert "".join(model.stream(prompt, **options)) == expected.text
    if options.get("temperature") != 0:
        check(model.generate(prompt, n=3, **options)[0])
    session = model.session(**options).feed(prompt)
    tokens = []
    while len(tokens) < options["max_tokens"]:
        part = session.generate(min(1 + place * 3, options["max_tokens"] - len(tokens)))
        tokens += part.token_ids
        if part.finish_reason != "length":
            break
        session = model.session(bytes(session))
    assert tokens == expected.token_ids
