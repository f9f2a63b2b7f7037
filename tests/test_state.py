# SPDX-License-Identifier: Apache-2.0
"""States, sessions and the prefix cache: wherever a text is interrupted, copied, stored or taken back, it goes on."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastlm
from conftest import LEVELS, random_weights
from fastlm.tokenizer import ByteTokenizer

CONTROLS = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "penalty_window": 7},
    {"mirostat_tau": 3.0, "mirostat_eta": 0.5},
    {"dry_multiplier": 0.8, "no_repeat_ngram_size": 3, "xtc_probability": 0.5, "min_tokens": 25},
    {"presence_penalty": 0.5, "stop": ["q", "zz"], "logit_bias": {97: 1.0}},
]


# ---- states --------------------------------------------------------------------------------------------


def test_a_state_is_a_value(lm):
    a = lm.state().feed("once upon")
    b = lm.state().feed("once").feed(" upon")
    assert a == b
    assert a.fingerprint() == b.fingerprint()
    assert a.position == 1 + len("once upon")
    c = a.copy().feed(" a time")
    assert c != a
    assert a == b
    assert c == b.feed(" a time")
    assert [one == c for one in c.fork(3)] == [True] * 3


def test_a_state_says_what_comes(lm):
    a = lm.state().feed("once upon")
    logprobs = a.logprobs()
    assert logprobs.dtype == np.float32
    assert np.exp(logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    scored = lm.score("once upon a").logprobs
    assert logprobs[ord(" ")] == np.float32(scored[-2])


def test_a_stored_state_is_the_same(lm, byte_model):
    a = lm.state().feed("once upon")
    for isa in LEVELS:
        again = fastlm.load(byte_model, isa=isa).state(bytes(a))
        assert again == a
        assert np.array_equal(again.feed(" a").logprobs(), lm.state(bytes(a)).feed(" a").logprobs())
    assert lm.state(start=False).position == 0


def test_what_is_no_state_is_refused(lm, tmp_path):
    stored = bytes(lm.state().feed("once"))
    for place in range(0, len(stored), 7):
        damaged = bytearray(stored)
        damaged[place] ^= 16
        with pytest.raises(ValueError, match="state"):
            lm.state(bytes(damaged))
        with pytest.raises(ValueError, match="state"):
            lm.state(stored[:place])
    fastlm.export(random_weights(257, 16, (24, 18), seed=9), tmp_path / "m.gguf", tokenizer=ByteTokenizer())
    with pytest.raises(ValueError, match="belongs to another model"):
        fastlm.load(tmp_path / "m.gguf").state(stored)
    with pytest.raises(ValueError, match="expected a session, found a state"):
        lm.session(stored)
    with pytest.raises(TypeError, match="token ids"):
        lm.state().feed(5)


def test_numbers_that_no_state_has_are_refused(lm):
    engine = lm.state()._engine
    values = np.frombuffer(engine.values(), np.float32).copy()
    for number in (np.nan, np.inf, 1.5, -2.0):
        wrong = values.copy()
        wrong[0] = number
        with pytest.raises(ValueError, match="hidden values"):
            engine.set(1, wrong.tobytes())
    with pytest.raises(ValueError, match="bytes of values"):
        engine.set(1, values.tobytes()[:-4])


# ---- sessions ------------------------------------------------------------------------------------------


def interrupted(lm, random, options, prompt, count, how):
    """A text of `count` tokens, in pieces of random lengths, with something done between them."""
    session = lm.session(seed=11, **options).feed(prompt)
    tokens, text = [], ""
    while len(tokens) < count:
        part = int(random.integers(1, 12))
        found = session.generate(min(part, count - len(tokens)))
        tokens += found.token_ids
        text += found.text
        if found.finish_reason != "length":
            return tokens, text, found
        session = how(lm, random, session)
    return tokens, text, found


def stored(lm, random, session):
    return lm.session(bytes(session))


def copied(lm, random, session):
    session.copy().generate(3)
    return session.copy()


def taken_back(lm, random, session):
    n = int(random.integers(0, 6))
    before = session.tokens
    session.generate(n)
    session.rewind(len(session.tokens) - len(before))
    assert session.tokens == before
    return session


@pytest.mark.parametrize("how", [stored, copied, taken_back])
@pytest.mark.parametrize("which", range(len(CONTROLS)))
def test_interruptions_do_not_matter(lm, which, how):
    random = np.random.default_rng(which)
    options = {"max_tokens": 60, **CONTROLS[which]}
    whole = lm.generate("once upon", seed=11, **options)
    for _ in range(5):
        tokens, text, last = interrupted(lm, random, options, "once upon", 60, how)
        assert tokens == whole.token_ids
        assert last.finish_reason == whole.finish_reason
        if last.finish_reason == "stop":
            assert text == whole.text
        else:  # what may become a character or a stop text is not out yet
            assert whole.text.startswith(text.rstrip("\ufffd"))


def test_a_session_streams_what_it_generates(lm):
    for options in CONTROLS:
        session, other = (lm.session(seed=3, **options).feed("once") for _ in range(2))
        assert "".join(session.stream(30)) == other.generate(30).text
        assert session.tokens == other.tokens
        assert session.generate(10).token_ids == other.generate(10).token_ids


def test_a_dialogue_remembers_both_sides(lm):
    session = lm.session(seed=1, repetition_penalty=1.3).feed("hello ")
    first = session.generate(12)
    session.feed(" and ")
    second = session.generate(12)
    assert session.tokens == [lm.bos, *b"hello ", *first.token_ids, *b" and ", *second.token_ids]
    prompt = session.tokens[:-12]
    assert second.token_ids == lm.generate(prompt, seed=1, repetition_penalty=1.3, max_tokens=12).token_ids


def test_a_session_goes_back_any_distance(lm):
    session = lm.session(seed=5, temperature=1.0).feed("once")
    tokens = session.generate(40).token_ids
    for n in (1, 7, 30):
        session.rewind(n)
        assert session.generate(n).token_ids == tokens[-n:]
    session.rewind(len(session))
    assert session.tokens == []
    with pytest.raises(ValueError, match="rewind"):
        session.rewind(1)


def test_forks_write_as_the_n_texts_of_a_prompt(lm):
    session = lm.session(seed=7, temperature=1.0).feed("once")
    expected = [one.token_ids for one in lm.generate("once", n=3, seed=7, temperature=1.0, max_tokens=15)]
    assert [one.generate(15).token_ids for one in session.fork(3)] == expected


def test_what_a_session_cannot_do_is_said(lm):
    with pytest.raises(ValueError, match="has no n"):
        lm.session(n=2)
    with pytest.raises(ValueError, match="leave out top_k"):
        lm.session(bytes(lm.session()), top_k=3)
    with pytest.raises(ValueError, match="cannot be stored"):
        bytes(lm.session(cancelled=lambda: False))
    with pytest.raises(ValueError, match="max_tokens=-1"):
        lm.session().generate(-1)
    whole = bytes(lm.session(stop="x", logit_bias={5: 1}, bad_words=["ab"]).feed("abc"))
    for place in range(0, len(whole), 11):
        with pytest.raises(ValueError, match="session"):
            lm.session(whole[:place])


# ---- the prefix cache ----------------------------------------------------------------------------------


def test_cached_prefixes_change_nothing(byte_model):
    random = np.random.default_rng(3)
    cached, bare = fastlm.load(byte_model), fastlm.load(byte_model, prefix_cache_mb=0)
    text = "once upon a time there was a little rabbit who lived in a wood"
    for seed in range(60):
        prompts = [text[: random.integers(0, len(text))] for _ in range(random.integers(1, 4))]
        options = {"seed": seed, "max_tokens": 26, **CONTROLS[seed % len(CONTROLS)]}
        ours = [one.token_ids for one in cached.generate(prompts, **options)]
        assert ours == [one.token_ids for one in bare.generate(prompts, **options)]
        assert "".join(cached.stream(prompts[0], **options)) == bare.generate(prompts[0], **options).text
        assert cached.next_tokens(prompts[0]) == bare.next_tokens(prompts[0])
    assert cached._prefixes.hits > 50


def test_the_prefix_cache_is_bounded(byte_model):
    model = fastlm.load(byte_model, prefix_cache_mb=0.01)
    for n in range(200):
        model.generate(f"prompt number {n:3}", max_tokens=1)
    assert model._prefixes._bytes <= 0.01 * 2**20
    assert 0 < len(model._prefixes._states) < 40
    with pytest.raises(ValueError, match="prefix_cache_mb=-1"):
        fastlm.load(byte_model, prefix_cache_mb=-1)


# ---- what a session remembers whatever happens -----------------------------------------------------------


def test_copies_share_no_second_model(lm, tmp_path):
    weights = random_weights(257, 8, (16,), seed=9)
    fastlm.export(weights, tmp_path / "weak.gguf", tokenizer=ByteTokenizer(), bos=256)
    weak = fastlm.load(tmp_path / "weak.gguf")
    begun = lm.session(contrastive_model=weak, seed=3, max_tokens=10).feed("once upon")
    alone = [one.generate().token_ids for one in begun.fork(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: one.generate().token_ids, begun.fork(3)))
    assert together == alone
    assert alone[0] == begun.generate().token_ids


def _interrupting(after):
    """Options that raise in the middle of a text."""
    calls = []

    def asked(*given):
        calls.append(given)
        if len(calls) == after:
            raise KeyError("interrupted")

    return [{"cancelled": lambda: asked()}, {"logits_processor": lambda ids, logits: asked(ids)}]


@pytest.mark.parametrize("place", [0, 1])
def test_an_exception_loses_nothing(lm, place):
    options = {"temperature": 1.0, "mirostat_tau": 4.0, "seed": 5, "max_tokens": 150}
    unbroken = lm.session(**options).feed("once").generate()
    session = lm.session(**options, **_interrupting(after=3)[place]).feed("once")
    with pytest.raises(KeyError):
        session.generate()
    written = len(session) - len("once") - 1
    rest = session.generate(150 - written)
    assert session.tokens[-150:] == unbroken.token_ids
    assert rest.text == unbroken.text


def test_a_stop_token_leaves_no_trace(byte_model):
    """Mirostat's aim is that of the tokens there are, also after bytes."""
    lm, options = fastlm.load(byte_model), {"mirostat_tau": 5.0, "mirostat_eta": 1.0, "seed": 1}
    common = list(range(0, 256, 2))
    session = lm.session(**options, stop_token_ids=common).feed("once")
    assert session.generate(100).finish_reason == "stop"
    again = lm.session(bytes(session))
    assert session.generate(30).token_ids == again.generate(30).token_ids
    assert session.generate(30).token_ids == again.generate(30).token_ids


def test_options_of_any_kind_of_number_or_list_are_stored(lm):
    options = {"top_k": np.int64(5), "temperature": np.float32(0.5), "min_tokens": np.uint8(3), "seed": np.uint64(4)}
    session = lm.session(**options, stop=iter(["q", "zz"]), bad_words=(word for word in ["x"])).feed("once")
    again = lm.session(bytes(session))
    assert session.generate(40).text == again.generate(40).text == session.copy().rewind(40).generate(40).text
    plain = lm.session(top_k=5, temperature=0.5, min_tokens=3, seed=4, stop=["q", "zz"], bad_words=["x"]).feed("once")
    assert plain.generate(40).text == lm.session(bytes(again.rewind(40))).generate(40).text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda lm: lm.session("Once upon"), TypeError, r"found str; a text is read by model.session\(\).feed\(text\)"),
        (lambda lm: lm.state("Once upon"), TypeError, r"expected bytes\(\) of a state, found str"),
        (
            lambda lm: lm.session().feed("ab").rewind(1.5),
            ValueError,
            "rewind.1.5.: expected a whole number from 0 to 3",
        ),
        (lambda lm: lm.session().rewind(True), ValueError, "expected a whole number"),
        (lambda lm: lm.session().fork(-1), ValueError, "fork.-1.: expected a whole number"),
        (lambda lm: lm.session().rewind(1).generate(), ValueError, "not even a start of text: feed it one first"),
    ],
)
def test_a_wrong_call_of_a_session_says_what_is_right(lm, call, error, message):
    with pytest.raises(error, match=message):
        call(lm)


def test_a_session_says_how_its_text_ended(lm):
    session = lm.session(stop=["e", "a", "o", " "], seed=1).feed("once")
    assert session.finish_reason is None
    list(session.stream(200))
    assert session.finish_reason == "stop"
    session.generate(0)
    assert session.finish_reason == "length"


def test_a_session_keeps_its_options_to_itself(lm):
    """What the caller does to his lists later is no matter."""
    stops, biases, choices = ["zz"], {97: -5.0}, ["ab"]
    session = lm.session(stop=stops, logit_bias=biases, seed=1).feed("once")
    before = bytes(session)
    stops[0], biases[97] = "e", 50.0
    assert bytes(session) == before
    pytest.importorskip("llguidance")
    session = lm.session(choices=choices, max_tokens=1, seed=1)
    session.generate()
    choices[0] = "xy"
    assert lm.session(bytes(session)).generate().text == session.copy().generate().text


def test_the_reason_of_the_last_text_is_kept_and_forgotten(lm):
    session = lm.session(stop=["e", "a", "o", " "], seed=1, max_tokens=200).feed("once")
    session.generate()
    assert lm.session(bytes(session)).finish_reason == session.finish_reason == "stop"
    pieces = session.stream()
    next(pieces, None)
    pieces.close()
    assert session.finish_reason != "stop" or not session._writing
