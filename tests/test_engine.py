# SPDX-License-Identifier: Apache-2.0
"""The engine against the float64 reference, and against itself: the same bits everywhere."""

import hashlib
import signal
import threading
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
import reference
from conftest import LEVELS, Reader, random_weights
from fastlm import _engine
from fastlm.format import write
from fastlm.weights import Weights

SIZES = st.integers(1, 70)


@st.composite
def architectures(draw):
    units = draw(st.lists(SIZES, min_size=1, max_size=4))
    tied = draw(st.booleans())
    return {
        "vocab": draw(st.integers(1, 200)),
        "embedding": units[-1] if tied else draw(SIZES),
        "units": units,
        "tied": tied,
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(max_examples=40, deadline=None)
@given(architectures())
def test_logits_equal_reference_and_every_level(tmp_path_factory, architecture):
    weights = random_weights(**architecture)
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    fastlm.export(weights, path)
    tokens = np.random.default_rng(1).integers(0, architecture["vocab"], 12).tolist()
    expected = reference.logits(weights, tokens)
    found = {isa: logits_after_each(fastlm.load(path, isa=isa), tokens) for isa in LEVELS}
    np.testing.assert_allclose(found["scalar"], expected, atol=2e-5)
    for isa in LEVELS:
        assert found[isa].tobytes() == found["scalar"].tobytes(), isa


def logits_after_each(model, tokens):
    reader = Reader(model)
    rows = []
    for token in tokens:
        reader.feed(array("i", [token]))
        rows.append(np.array(reader.logits(), np.float32))
    return np.stack(rows)


def test_levels_are_really_different_code(byte_model):
    assert [fastlm.load(byte_model, isa=isa).info["isa"] for isa in LEVELS] == LEVELS


@pytest.mark.parametrize("isa", LEVELS)
def test_bits_are_those_of_every_other_machine(tmp_path, isa):
    """Weights from whole numbers, so that they are the same everywhere; the hash is a promise of numerics version 1."""

    def array_of(*shape, start):
        n = np.arange(np.prod(shape), dtype=np.int64)
        return (((n * 7919 + start) % 2003 - 1001) / 2048).astype(np.float32).reshape(shape)

    weights = {"embedding": array_of(70, 9, start=1)}
    for n, (inputs, h) in enumerate([(9, 37), (37, 18)]):
        weights[f"lstm.{n}.kernel"] = array_of(inputs, 4 * h, start=2 + n)
        weights[f"lstm.{n}.recurrent_kernel"] = array_of(h, 4 * h, start=5 + n) / np.float32(2)
        weights[f"lstm.{n}.bias"] = array_of(4 * h, start=7 + n)
    weights["output.kernel"] = array_of(18, 70, start=11)
    fastlm.export(weights, tmp_path / "golden.gguf")
    model = fastlm.load(tmp_path / "golden.gguf", isa=isa)
    rows = logits_after_each(model, range(70))
    drawn = model.generate([5], max_tokens=60, temperature=0.9, top_k=40, top_p=0.9, seed=2**63 + 11).token_ids
    assert hashlib.sha256(rows.tobytes() + bytes(drawn)).hexdigest() == GOLDEN


GOLDEN = "19b46e017a8fd121123e3b28264cda70b6f20b3342e7b394b2af3cb74cbc5887"


def test_state_is_the_same_read_at_once_in_parts_or_copied(byte_model):
    tokens = array("i", list(b"The quick brown fox jumps over the lazy dog, and then over another one. " * 3))
    for cache in (0, 0.01, 16):  # megabytes: none, too few, enough for all rows
        model = fastlm.load(byte_model, row_cache_mb=cache)
        whole, parts = Reader(model), Reader(model)
        whole.feed(tokens)
        for at in range(0, len(tokens), 7):
            parts.feed(tokens[at : at + 7])
        copy = Reader(model, whole.state.copy())
        assert bytes(whole.logits()) == bytes(parts.logits()) == bytes(copy.logits())
        assert whole.position == parts.position == copy.position == len(tokens)
        parts.state.reset()
        assert parts.position == 0
        parts.feed(tokens)
        assert bytes(parts.logits()) == bytes(whole.logits())


def test_decoder_refuses_a_state_of_another_model(byte_model):
    reader = Reader(fastlm.load(byte_model), Reader(fastlm.load(byte_model)).state)
    for call in (reader.logits, lambda: reader.feed(array("i", [1])), lambda: reader.score(array("i", [1]))):
        with pytest.raises(ValueError, match="another model"):
            call()


def test_many_threads_share_one_model(byte_model):
    """All start at once on an empty row cache, so that they race for its rows."""
    prompts = [bytes([65 + i]).decode() * 3 for i in range(8)]
    options = {"max_tokens": 200, "temperature": 1.0, "seed": 3}
    alone = [fastlm.load(byte_model, row_cache_mb=0).generate(p, **options).token_ids for p in prompts]
    for _ in range(5):
        model = fastlm.load(byte_model)
        found, barrier = [None] * len(prompts), threading.Barrier(len(prompts))

        def run(i, model=model, found=found, barrier=barrier):
            barrier.wait()
            found[i] = model.generate(prompts[i], **options).token_ids

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert found == alone


def test_large_weights_overflow_nowhere(tmp_path):
    """The largest weights that a file may hold give finite logits and log-probabilities that sum to one."""
    weights = random_weights(40, 10, (30, 20))
    weights = {name: np.sign(array) * np.float32(2**40) for name, array in weights.items()}
    path = tmp_path / "large.gguf"
    write(path, Weights.from_dict(weights), {})
    for isa in LEVELS:
        model = fastlm.load(path, isa=isa)
        rows = logits_after_each(model, range(20))
        assert np.isfinite(rows).all()
        assert np.isfinite(model.score(list(range(20))).total)
        assert len(model.generate([1], max_tokens=20, temperature=1000.0, top_p=0.5, seed=1).token_ids) == 20


def test_logprobs_sum_to_one(lm):
    reader = Reader(lm)
    reader.feed(array("i", [97, 98, 99]))
    total = 0.0
    for token in range(lm.vocab_size):
        fork = Reader(lm, reader.state.copy())
        total += np.exp(fork.score(array("i", [token]))[0])
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("isa", "message"), [("sse9", "isa=sse9: unknown"), ("", None)])
def test_unknown_level_is_refused(byte_model, monkeypatch, isa, message):
    if message:
        with pytest.raises(ValueError, match=message):
            fastlm.load(byte_model, isa=isa)
        monkeypatch.setenv("FASTLM_ISA", isa)
        for call in (lambda: fastlm.load(byte_model), fastlm.cpu_info):
            with pytest.raises(ValueError, match="FASTLM_ISA=sse9: unknown; this build has scalar"):
                call()
    else:
        monkeypatch.setenv("FASTLM_ISA", isa)  # empty: as if it were not set
        assert fastlm.load(byte_model).info["isa"] == LEVELS[-1]


@pytest.mark.parametrize("isa", LEVELS)
def test_environment_forces_a_level(byte_model, monkeypatch, isa):
    monkeypatch.setenv("FASTLM_ISA", isa)
    assert fastlm.load(byte_model).info["isa"] == isa
    assert fastlm.cpu_info()["isa"] == isa


def test_engine_refuses_tokens_outside_the_vocabulary(lm):
    reader = Reader(lm)
    for tokens, message in [([-1], "token -1 at place 0"), ([3, 257], "token 257 at place 1: expected 0 to 256")]:
        with pytest.raises(ValueError, match=message):
            reader.feed(array("i", tokens))
        with pytest.raises(ValueError, match=message):
            reader.score(array("i", tokens))
    assert reader.position == 0


def test_jobs_keep_what_they_are_given(lm):
    """The caller may change his arrays and lists: no token outside the vocabulary gets past the check."""
    prompt, sampling = array("i", [1, 2, 3]), _engine.Sampling(lm._engine)
    job = _engine.Job(_engine.State(lm._engine), prompt, sampling, 4, alternatives=2)
    prompt[:] = array("i", [1 << 30] * 3)
    del prompt[1:]
    decoder = _engine.Decoder(lm._engine)
    assert job.unread == array("i", [1, 2, 3])
    assert len(decoder.expand([job])[0][0]) == 2
    with pytest.raises(TypeError, match="expected a Job, found None"):
        decoder.expand([None])


def test_signals_are_seen_during_a_long_text(tmp_path):
    fastlm.export(random_weights(), tmp_path / "endless.gguf")
    lm = fastlm.load(tmp_path / "endless.gguf")

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            lm.generate([1], max_tokens=10**9, temperature=1.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert lm.generate([1], max_tokens=3, seed=1).token_ids  # the model is as good as before


def test_isa_levels_names_what_the_build_has():
    assert next(iter(_engine.isa_levels())) == ("scalar", True)
