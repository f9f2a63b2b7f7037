# SPDX-License-Identifier: Apache-2.0
"""load, generate, stream and score as a user meets them."""

import os
import sys
from array import array

import numpy as np
import pytest

import fastlm
import reference
from conftest import random_weights
from fastlm.tokenizer import ByteTokenizer, CharTokenizer

SAMPLED = {"temperature": 1.0, "max_tokens": 60}


def test_generate_returns_a_completion(lm):
    c = lm.generate("Once", seed=4, **SAMPLED)
    assert str(c) == c.text == lm.decode(c.token_ids)
    assert c.finish_reason in ("length", "stop")
    assert c.seed == 4
    assert c.logprobs is None
    assert c.usage["prompt_tokens"] == 5  # with the start of text
    assert c.usage["total_tokens"] == 5 + len(c.token_ids)
    assert c.timings["seconds"] > 0


def test_same_seed_same_text_wherever_it_stands(lm):
    alone = lm.generate("abc", seed=11, **SAMPLED)
    batch = lm.generate(["x", "abc", "y", "abc"], seed=11, **SAMPLED)
    assert batch[1].token_ids == batch[3].token_ids == alone.token_ids
    assert batch[0].token_ids != alone.token_ids
    assert lm.generate("abc", seed=12, **SAMPLED).token_ids != alone.token_ids


def test_no_seed_draws_one_and_reports_it(lm):
    first, second = (lm.generate("abc", **SAMPLED) for _ in range(2))
    assert first.seed != second.seed
    assert lm.generate("abc", seed=first.seed, **SAMPLED).token_ids == first.token_ids


def test_n_differ_by_their_index(lm):
    several = lm.generate("abc", n=5, seed=3, **SAMPLED)
    assert len({tuple(c.token_ids) for c in several}) == 5
    assert several[0].token_ids == lm.generate("abc", seed=3, **SAMPLED).token_ids
    nested = lm.generate(["abc", "d"], n=2, seed=3, **SAMPLED)
    assert [c.token_ids for c in nested[0]] == [c.token_ids for c in several[:2]]


def test_prompts_of_ids_are_used_as_they_are(lm):
    text = lm.generate("abc", seed=1, **SAMPLED)
    for ids in ([256, *b"abc"], np.array([256, *b"abc"]), array("i", [256, *b"abc"]), (256, *b"abc")):
        assert lm.generate(ids, seed=1, **SAMPLED).token_ids == text.token_ids
    assert lm.generate(list(b"abc"), seed=1, **SAMPLED).token_ids != text.token_ids
    rows = lm.generate([[256, *b"abc"], [5]], seed=1, **SAMPLED)
    assert rows[0].token_ids == text.token_ids


def test_empty_prompt_starts_from_nothing(lm, tmp_path):
    assert lm.generate("", seed=1, **SAMPLED).token_ids == lm.generate([], seed=1, **SAMPLED).token_ids
    assert lm.generate([256], seed=1, **SAMPLED).token_ids == lm.generate([], seed=1, **SAMPLED).token_ids
    fastlm.export(random_weights(), tmp_path / "ids.gguf")
    with pytest.raises(ValueError, match="prompt is empty and this model has no start of text"):
        fastlm.load(tmp_path / "ids.gguf").generate([])


def test_end_of_text_and_stop_tokens_end_a_text(lm):
    whole = lm.generate("a", max_tokens=400, temperature=1.0, seed=5).token_ids
    stop = whole[10]
    first = whole.index(stop)
    c = lm.generate("a", max_tokens=400, temperature=1.0, seed=5, stop_token_ids=[stop])
    assert (c.token_ids, c.finish_reason) == (whole[:first], "stop")
    assert 256 not in lm.generate("a", n=50, max_tokens=400, temperature=1.0, seed=5)[0].token_ids


def test_max_tokens_is_exact(lm):
    for n in (0, 1, 31, 32, 33, 100):
        c = lm.generate([1], max_tokens=n, temperature=0.0)
        assert (len(c.token_ids), c.finish_reason) == (n, "length")
    assert lm.generate("a", max_tokens=0).text == ""


def test_logprobs_are_those_of_score(lm):
    c = lm.generate("abc", max_tokens=70, temperature=0.5, top_k=5, seed=1, logprobs=True)
    score = lm.score([256, *b"abc", *c.token_ids])
    assert c.logprobs == list(score.logprobs[4:])


@pytest.mark.parametrize("seed", range(6))
def test_stream_gives_the_text_of_generate_in_whole_characters(lm, seed):
    options = {"max_tokens": 120, "temperature": 1.5, "seed": seed}
    pieces = list(lm.stream("né", **options))
    assert "".join(pieces) == lm.generate("né", **options).text
    assert all(pieces)
    assert "".join(lm.stream("né", echo=True, **options)) == lm.generate("né", echo=True, **options).text


def test_stream_never_splits_a_character(tmp_path):
    """A model that can only write one snowman after another, byte by byte."""
    snowman = "☃".encode()
    weights = random_weights(257, 257, (257,), bias=False)
    weights = {name: np.zeros_like(array) for name, array in weights.items()}
    weights["embedding"] = np.eye(257, dtype=np.float32)
    weights["lstm.0.kernel"][:, 514:771] = 20 * np.eye(257)  # g: h tells which byte was read
    weights["lstm.0.bias"] = np.concatenate([20 * np.ones(257), -20 * np.ones(257), np.zeros(257), 20 * np.ones(257)])
    for here, after in zip(snowman, snowman[1:] + snowman[:1], strict=True):
        weights["output.kernel"][here, after] = 50
    fastlm.export(weights, tmp_path / "m.gguf", tokenizer=ByteTokenizer())
    lm = fastlm.load(tmp_path / "m.gguf")
    assert list(lm.stream("☃", max_tokens=9, temperature=0.0)) == ["☃"] * 3
    assert list(lm.stream("☃", max_tokens=8, temperature=0.0)) == ["☃", "☃", "\ufffd"]
    assert lm.generate("☃", max_tokens=8, temperature=0.0).text == "☃☃\ufffd"


def test_streams_hold_no_decoder_between_pieces(lm):
    stream = lm.stream("abc", max_tokens=10**9, temperature=1.0, seed=1)
    next(stream)
    assert len(lm._idle) == 1
    stream.close()
    assert len(lm._idle) == 1


def test_two_streams_of_one_model_do_not_disturb_each_other(lm):
    options = {"max_tokens": 40, "temperature": 1.0}
    a, b = lm.stream("a", seed=1, **options), lm.stream("b", seed=2, **options)
    found = [[], []]
    for _ in range(50):
        found[0].append(next(a, ""))
        found[1].append(next(b, ""))
    assert "".join(found[0]) == lm.generate("a", seed=1, **options).text
    assert "".join(found[1]) == lm.generate("b", seed=2, **options).text


def test_score_equals_reference(tmp_path):
    weights = random_weights(257, 10, (20, 15))
    fastlm.export(weights, tmp_path / "m.gguf", tokenizer=ByteTokenizer())
    lm = fastlm.load(tmp_path / "m.gguf")
    text = "Grüß Gott"
    ids = [256, *text.encode()]
    rows = reference.log_softmax(reference.logits(weights, ids))
    expected = [rows[t, ids[t + 1]] for t in range(len(ids) - 1)]
    score = lm.score(text)
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)
    assert score.token_ids == ids[1:]
    assert score.total == pytest.approx(sum(expected), abs=1e-4)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=1e-5)
    assert score.bits_per_char == pytest.approx(-sum(expected) / np.log(2) / len(text), rel=1e-5)
    assert [s.total for s in lm.score([text, "x"])] == [score.total, lm.score("x").total]


def test_score_of_documents_carries_the_state(tmp_path):
    tokens = CharTokenizer.train(["ab"], documents="blank-line")
    fastlm.export(random_weights(tokens.vocab_size), tmp_path / "m.gguf", tokenizer=tokens)
    lm = fastlm.load(tmp_path / "m.gguf")
    a, b = (lm.encode(c)[0] for c in "ab")
    score = lm.score("ab\n\nba\n", documents=True)
    assert score.token_ids == [a, b, 0, b, a, 0]
    assert list(score.logprobs) == list(lm.score([0, *score.token_ids]).logprobs[1:])
    with pytest.raises(ValueError, match="documents=True wants a text"):
        lm.score([1, 2], documents=True)


def test_score_of_nothing(lm):
    for score in (lm.score(""), lm.score([])):
        assert score.total == 0
        assert np.isnan(score.perplexity)
        assert np.isnan(score.bits_per_char)


def test_a_prompt_of_a_million_tokens_takes_constant_memory(lm):
    import resource

    prompt = array("i", [65]) * 1_000_000
    lm.generate(prompt[:1000], max_tokens=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    completion = lm.generate(prompt, max_tokens=5, temperature=0.0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert completion.usage["prompt_tokens"] == 1_000_000
    assert grown < 64 * 1024 * (1 if sys.platform != "darwin" else 1024)  # the Python list of ids, not the engine


def test_recommended_settings_are_the_defaults(tmp_path):
    path = tmp_path / "m.gguf"
    fastlm.export(random_weights(257), path, tokenizer=ByteTokenizer(), sampling={"temperature": 0.5, "top_k": 3})
    lm = fastlm.load(path)
    assert lm.recommended == {"temperature": 0.5, "top_k": 3}
    fastlm.export(random_weights(257), tmp_path / "n.gguf", sampling={"temperature": 0.8, "top_p": 0.95})
    assert fastlm.load(tmp_path / "n.gguf").recommended == {"temperature": 0.8, "top_p": 0.95}  # not 0.949999988
    given = lm.generate("a", max_tokens=50, seed=1, temperature=0.5, top_k=3).token_ids
    assert lm.generate("a", max_tokens=50, seed=1).token_ids == given
    assert lm.generate("a", max_tokens=50, seed=1, temperature=1.0, top_k=0).token_ids != given


def test_bytes_and_paths_load_alike(byte_model, lm):
    with open(byte_model, "rb") as file:
        data = file.read()
    for source in (data, bytearray(data), memoryview(data)):
        assert fastlm.load(source).generate("a", seed=1, **SAMPLED).text == lm.generate("a", seed=1, **SAMPLED).text


def test_a_model_survives_the_removal_and_replacement_of_its_file(byte_model, tmp_path):
    path = tmp_path / "m.gguf"
    with open(byte_model, "rb") as file:
        path.write_bytes(file.read())
    lm = fastlm.load(path)
    text = lm.generate("a", seed=1, **SAMPLED).text
    fastlm.export(random_weights(257, seed=5), path, tokenizer=ByteTokenizer())  # replaces, does not overwrite
    path.unlink()
    assert lm.generate("a", seed=1, **SAMPLED).text == text


def test_a_forked_process_goes_on(lm):
    text = lm.generate("a", seed=1, **SAMPLED).text
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, lm.generate("a", seed=1, **SAMPLED).text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10_000).decode() == text


def test_info_says_what_the_model_is(lm):
    info = lm.info
    assert info["name"] == "noise"
    assert info["vocab_size"] == lm.vocab_size == 257
    assert info["units"] == [24, 18]
    assert (info["bos"], info["eos"], info["tokenizer"]) == (256, 256, "bytes")
    assert info["row_cache_bytes"] == (257 + 64) * 4 * 32 * 4  # every token's row fits, and a few are to spare
    assert lm.metadata["general.architecture"] == "lstm"


def test_check_finds_a_changed_weight(byte_model, tmp_path):
    lm = fastlm.load(byte_model)
    largest, tolerance = lm.check()
    assert largest <= tolerance
    with open(byte_model, "rb") as file:
        data = bytearray(file.read())
    _, _, offset, size, _ = next(t for t in lm._engine.tensors() if t[0] == "blk.1.h.weight")
    data[offset : offset + size] = np.zeros(size // 4, np.float32).tobytes()
    largest, tolerance = fastlm.load(bytes(data)).check()
    assert largest > tolerance


BAD_CALLS = [
    (lambda lm: lm.generate("a", max_new_tokens=5), TypeError, "did you mean max_tokens"),
    (lambda lm: lm.generate("a", temperatur=1), TypeError, "did you mean temperature"),
    (lambda lm: lm.generate("a", do_sample=True), TypeError, "temperature"),
    (
        lambda lm: lm.generate("a", must_include=["b"]),
        ValueError,
        "must_include=['b'] does nothing without num_beams",
    ),
    (lambda lm: lm.generate("a", zzz=1), TypeError, "unknown option 'zzz': expected one of n, best_of"),
    (lambda lm: lm.generate("a", temperature=-0.1), ValueError, "temperature=-0.1: expected 0 to 1000"),
    (lambda lm: lm.generate("a", temperature=float("nan")), ValueError, "temperature=nan"),
    (lambda lm: lm.generate("a", temperature="hot"), TypeError, "temperature='hot': expected a number, found str"),
    (
        lambda lm: lm.generate("a", top_p=0),
        ValueError,
        "expected above 0 and at most 1; 0 would keep no token",
    ),
    (lambda lm: lm.generate("a", top_p=1.5), ValueError, "top_p=1.5: expected above 0 and at most 1"),
    (lambda lm: lm.generate("a", top_k=-1), ValueError, "top_k=-1"),
    (lambda lm: lm.generate("a", top_k=2.5), TypeError, "top_k=2.5: expected a whole number, found float"),
    (lambda lm: lm.generate("a", max_tokens=-1), ValueError, "max_tokens=-1"),
    (lambda lm: lm.generate("a", max_tokens=None), TypeError, "max_tokens=None"),
    (lambda lm: lm.generate("a", n=0), ValueError, "n=0: expected 1 to"),
    (lambda lm: lm.generate("a", seed=2**64), ValueError, "seed="),
    (lambda lm: lm.generate("a", seed="7"), TypeError, "seed='7'"),
    (lambda lm: lm.generate("a", echo=1), TypeError, "echo=1: expected True or False"),
    (lambda lm: lm.generate("a", stop_token_ids=5), TypeError, "stop_token_ids=5: expected token ids"),
    (lambda lm: lm.generate("a", stop_token_ids=["x"]), TypeError, "stop_token_ids"),
    (lambda lm: lm.generate("a", stop_token_ids=[[1]]), TypeError, "stop_token_ids: expected token ids, as in [0, 13]"),
    (lambda lm: lm.generate("a", stop_token_ids=[1, 257]), ValueError, "stop_token_ids: 257 at place 1: expected 0 to"),
    (
        lambda lm: lm.generate("a", temperature=0, n=2),
        ValueError,
        "always takes the likeliest token, so n=2 would",
    ),
    (lambda lm: lm.generate("a", temperature=0, top_p=0.5), ValueError, "top_p=0.5 would do nothing"),
    (lambda lm: lm.generate("a", logprobs="5"), TypeError, "logprobs='5': expected a whole number"),
    (lambda lm: lm.generate("a", logprobs=258), ValueError, "logprobs=258: this model has 257 tokens"),
    (
        lambda lm: lm.generate("a", temperature=0, xtc_probability=0.5),
        ValueError,
        "so xtc_probability=0.5 would do",
    ),
    (lambda lm: lm.generate("a", xtc_threshold=0.2), ValueError, "does nothing without xtc_probability"),
    (lambda lm: lm.generate("a", penalty_window=5), ValueError, "without repetition_penalty or presence_penalty or"),
    (lambda lm: lm.generate("a", mirostat_tau=5, top_k=3), ValueError, "mirostat_tau decides how many tokens are kept"),
    (lambda lm: lm.generate("a", min_tokens=9, max_tokens=8), ValueError, "min_tokens=9 is more than max_tokens=8"),
    (lambda lm: lm.generate("a", n=3, best_of=2), ValueError, "best_of=2 is less than n=3"),
    (lambda lm: lm.generate("a", stop=""), ValueError, "stop: an empty text is everywhere"),
    (lambda lm: lm.generate("a", stop=["x", 5]), TypeError, "stop: expected text, found 5"),
    (lambda lm: lm.generate("a", stop_repeats=1), ValueError, "expected 2 or more"),
    (
        lambda lm: lm.generate("a", logit_bias={3: 101}),
        ValueError,
        "101 for token 3: expected a number from -100",
    ),
    (lambda lm: lm.generate("a", logit_bias={300: 1}), ValueError, "logit_bias: 300 at place 0"),
    (lambda lm: lm.generate("a", logit_bias=[3]), TypeError, "expected a mapping of token ids to numbers"),
    (lambda lm: lm.generate("a", allowed_token_ids=[]), ValueError, "an empty list allows nothing"),
    (lambda lm: lm.generate("a", bad_words=["", "x"]), ValueError, "bad_words: an empty word"),
    (lambda lm: lm.generate("a", dry_multiplier=1, dry_sequence_breakers=["ab"]), ValueError, "no token contains 'ab'"),
    (lambda lm: lm.generate("a", samplers=["top_q"]), ValueError, "unknown step 'top_q': did you mean 'top_"),
    (lambda lm: lm.generate("a", samplers=["top_k"], min_p=0.1), ValueError, "leaves out 'min_p', which is asked for"),
    (lambda lm: lm.generate("a", samplers=["top_k", "penalties"]), ValueError, "so they come first"),
    (lambda lm: lm.generate("a", samplers=["top_k", "top_k"]), ValueError, "a step is there twice"),
    (lambda lm: lm.generate("a", contrastive_model="x"), TypeError, "expected a model, as fastlm.load gives"),
    (lambda lm: lm.generate("a", logits_processor=5), TypeError, "expected something to call"),
    (lambda lm: lm.generate("a", logits_processor=lambda ids, z: z[:5]), ValueError, "expected 257 logits"),
    (lambda lm: lm.generate("a", logits_processor=lambda ids, z: z * np.nan), ValueError, "found NaN or infinity"),
    (lambda lm: lm.generate("a", each=[{}]), ValueError, "expected a list of prompts"),
    (lambda lm: lm.generate(["a", "b"], each=[{}]), ValueError, "expected 2 mappings of options, one for each prompt"),
    (lambda lm: lm.generate(["a"], each=iter([{}])), ValueError, "found list_iterator"),
    (lambda lm: lm.generate(["a"], each=[{"num_beams": 2}]), ValueError, "num_beams belongs to the whole call"),
    (lambda lm: lm.generate(["a", "b"], each=[{}, {"n": 2}]), ValueError, "each[1]: n belongs to the whole call"),
    (lambda lm: lm.generate(["a", "b"], each=[{}, {"top_k": -2}]), ValueError, "each[1]: top_k=-2"),
    (lambda lm: lm.next_tokens("a", 0), ValueError, "k=0: expected a whole number from 1 on"),
    (lambda lm: lm.generate(["a", b"b"]), TypeError, "found bytes at place 1 of a list of prompts"),
    (lambda lm: lm.generate(["a", None]), TypeError, "found NoneType at place 1 of a list of prompts"),
    (lambda lm: lm.generate([[1], 2]), TypeError, "found int at place 1"),
    (lambda lm: lm.generate([1, [2]]), TypeError, "token ids"),
    (lambda lm: lm.generate(np.array(5)), TypeError, "found ndarray"),
    (lambda lm: lm.encode(5), TypeError, "text=5: expected a str"),
    (lambda lm: lm.decode("ab"), TypeError, "token ids"),
    (lambda lm: lm.generate(None), TypeError, "found NoneType"),
    (lambda lm: lm.generate(7), TypeError, "found int"),
    (lambda lm: lm.generate(b"bytes"), TypeError, "found bytes"),
    (lambda lm: lm.generate({1: 2}), TypeError, "found dict"),
    (lambda lm: lm.generate([1.5]), TypeError, "token ids"),
    (lambda lm: lm.generate([2**40]), TypeError, "token ids"),
    (lambda lm: lm.generate([257]), ValueError, "token 257 at place 0: expected 0 to 256"),
    (lambda lm: lm.generate([[1], [2, 257]]), ValueError, "prompt 1 of the list: token 257 at place 1: expected 0 to"),
    (lambda lm: lm.generate(["a", [b"x"]]), TypeError, "prompt 1 of the list: a prompt is a str or a sequence of"),
    (lambda lm: lm.generate("a", n=65537), ValueError, "n=65537: expected 1 to 65536"),
    (lambda lm: lm.generate("\ud800"), ValueError, "not valid Unicode"),
    (lambda lm: lm.stream(["a", "b"]), TypeError, "one prompt"),
    (lambda lm: lm.stream("a", n=2), ValueError, "no n"),
    (lambda lm: lm.stream("a", logprobs=True), ValueError, "no logprobs"),
    (lambda lm: lm.stream("a", max_new_tokens=2), TypeError, "max_tokens"),
    (lambda lm: lm.score(3), TypeError, "found int"),
    (lambda lm: lm.decode([300]), ValueError, "token 300"),
]


@pytest.mark.parametrize("number", range(len(BAD_CALLS)))
def test_a_bad_call_says_what_would_be_right(lm, number):
    call, error, message = BAD_CALLS[number]
    with pytest.raises(error) as caught:
        call(lm)
    assert message in str(caught.value)


BAD_FILES = [
    (lambda d: "no-such", FileNotFoundError, "neither a file nor a bundled model (stories)"),
    (lambda d: d / "no-such.gguf", FileNotFoundError, "no-such.gguf"),
    (lambda d: d, IsADirectoryError, "directory"),
    (lambda d: d / "empty.gguf", fastlm.FormatError, "empty.gguf: expected a model file, found an empty file"),
    (
        lambda d: d / "text.gguf",
        fastlm.FormatError,
        "text.gguf: expected a model file, which starts with 'GGUF', found",
    ),
    (lambda d: b"", fastlm.FormatError, "found no bytes"),
    (lambda d: "/dev/null", fastlm.FormatError, "not a regular file"),
    (lambda d: 3.5, TypeError, "model=3.5: expected a path"),
    (lambda d: "a.gguf\0.gguf", ValueError, "null character"),
]


@pytest.mark.parametrize("number", range(len(BAD_FILES)))
def test_a_bad_file_is_named(tmp_path, number):
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("It was a dark and stormy night.")
    source, error, message = BAD_FILES[number]
    with pytest.raises(error) as caught:
        fastlm.load(source(tmp_path))
    assert message in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path):
    """In a process of its own, which gives up the right to read everything if it has it."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    child = os.fork()
    if child == 0:
        status = 1
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            fastlm.load(path)
        except PermissionError as e:
            status = 0 if e.filename == str(path) else 2
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("size", [-1, float("nan"), 1e9, "x", True])
def test_row_cache_size_is_checked(byte_model, size):
    with pytest.raises(ValueError, match="row_cache_mb"):
        fastlm.load(byte_model, row_cache_mb=size)


def test_recommended_settings_give_way(tmp_path):
    """What the file recommends is no contradiction of a greedy caller."""
    fastlm.export(random_weights(257), tmp_path / "m.gguf", sampling={"top_p": 0.5})
    lm = fastlm.load(tmp_path / "m.gguf")
    assert lm.generate([1], max_tokens=5, temperature=0).token_ids


def test_ids_only_models_refuse_text(tmp_path):
    fastlm.export(random_weights(), tmp_path / "ids.gguf")
    lm = fastlm.load(tmp_path / "ids.gguf")
    assert lm.generate([1], max_tokens=3, temperature=0.0).text == ""
    with pytest.raises(ValueError, match="echo=True: this model has no tokenizer"):
        lm.generate([1], echo=True)
    for call in (lambda: lm.generate("x"), lambda: lm.score("x"), lambda: lm.encode("x"), lambda: lm.stream("x")):
        with pytest.raises(ValueError, match="no tokenizer: it takes token ids"):
            call()
