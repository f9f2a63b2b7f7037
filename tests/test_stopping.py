# SPDX-License-Identifier: Apache-2.0
"""When a text ends: stop texts, deadlines, cancellation; and that each way of asking writes the same."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastlm
from conftest import random_weights
from fastlm.cli import _parser
from fastlm.options import GenerationOptions, Options
from fastlm.tokenizer import CharTokenizer, train_bpe, train_words

TEXT = "the cat sat on the mat. the dog sat on the cat, and the mat was flat. "


@pytest.fixture(scope="module", params=["chars", "bpe", "words"])
def writer(request, tmp_path_factory):
    """A random model that writes words of a few letters, with a tokenizer of each kind."""
    known = {
        "chars": lambda: CharTokenizer.train([TEXT]),
        "bpe": lambda: train_bpe([TEXT * 20], 300),
        "words": lambda: train_words([TEXT], 100),
    }[request.param]()
    path = tmp_path_factory.mktemp("writer") / "m.gguf"
    weights = random_weights(known.vocab_size, 8, (12,), seed=2)
    weights["output.bias"][[known.eos]] = -30
    if request.param == "bpe":  # letters and words, not broken characters
        seen = sorted(set(known.encode(TEXT * 20)))
        weights["output.bias"][[t for t in range(known.vocab_size) if t not in seen]] = -30
    fastlm.export(weights, path, tokenizer=known)
    return fastlm.load(path)


def test_a_stop_text_ends_the_text_where_it_first_appears(writer):
    random = np.random.default_rng(1)
    found = 0
    for seed in range(60):
        whole = writer.generate("the", max_tokens=60, seed=seed, temperature=1.0)
        begin = int(random.integers(0, max(1, len(whole.text) - 4)))
        stops = [whole.text[begin : begin + int(random.integers(1, 5))], "zq"]
        if not stops[0]:
            continue
        ended = writer.generate("the", max_tokens=60, seed=seed, temperature=1.0, stop=stops)
        assert ended.text == whole.text[: whole.text.find(stops[0])]
        assert (ended.finish_reason, ended.stop_reason) == ("stop", stops[0])
        assert ended.token_ids == whole.token_ids[: len(ended.token_ids)]
        assert stops[0] not in writer.tokenizer.decode(ended.token_ids[:-1], context=writer.encode("the"))
        pieces = list(writer.stream("the", max_tokens=60, seed=seed, temperature=1.0, stop=stops))
        assert "".join(pieces) == ended.text
        found += 1
    assert found > 30


def test_a_deadline_is_kept(writer):
    begin = time.perf_counter()
    completion = writer.generate("the", max_tokens=10**8, deadline_ms=80)
    assert time.perf_counter() - begin < 0.5  # 85 ms on a quiet machine
    assert completion.finish_reason == "deadline"
    assert completion.token_ids
    many = writer.generate(["the"] * 5, n=3, max_tokens=10**8, deadline_ms=30)
    assert {one.finish_reason for group in many for one in group} == {"deadline"}
    long = writer.generate("the cat " * 20000, max_tokens=10, deadline_ms=1)
    assert (long.finish_reason, long.token_ids) == ("deadline", [])


def test_another_thread_cancels(writer):
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    completion = writer.generate("the", max_tokens=10**8, cancelled=stop.is_set)
    assert completion.finish_reason == "cancelled"


def test_min_tokens_keeps_the_end_away(writer):
    ends = range(2, writer.vocab_size, 2)
    free = writer.generate("the", n=50, seed=1, temperature=1.0, stop_token_ids=ends, max_tokens=40)
    held = writer.generate("the", n=50, seed=1, temperature=1.0, stop_token_ids=ends, max_tokens=40, min_tokens=7)
    assert min(len(one.token_ids) for one in free) < 7
    assert min(len(one.token_ids) for one in held) >= 7
    assert all(one.stop_reason in ends for one in held if one.finish_reason == "stop")


def test_a_processor_sees_every_token_and_changes_what_comes(writer):
    seen = []

    def second(tokens, logits):
        seen.append(list(tokens))
        logits[int(logits.argmax())] = -np.inf

    ids = writer.encode("the cat")
    found = writer.generate(ids, max_tokens=5, temperature=0, logits_processor=second, logprobs=2)
    assert [list(top)[1] for top in found.top_logprobs] == found.token_ids  # of the model itself
    assert seen == [ids + found.token_ids[:n] for n in range(5)]
    same = writer.generate(ids, max_tokens=20, seed=4, logits_processor=lambda tokens, logits: None)
    assert same.token_ids == writer.generate(ids, max_tokens=20, seed=4).token_ids


def test_log_probabilities_are_the_model_s_own(writer):
    options = {"seed": 3, "max_tokens": 12, "repetition_penalty": 1.5, "temperature": 0.7, "top_k": 9}
    found = writer.generate("the cat", logprobs=4, prompt_logprobs=True, **options)
    ids = [writer.bos, *writer.encode("the cat")]
    scored = writer.score([*ids, *found.token_ids]).logprobs
    assert found.prompt_logprobs == [None, *scored[1 : len(ids)]]
    assert found.logprobs == pytest.approx(scored[len(ids) :], abs=1e-6)
    for top, token, logprob in zip(found.top_logprobs, found.token_ids, found.logprobs, strict=True):
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert top.get(token, logprob) == logprob
    assert writer.generate("the cat", **options).token_ids == found.token_ids


def test_best_of_gives_the_likeliest(writer):
    all_of_them = writer.generate("the", n=8, seed=2, max_tokens=9, logprobs=True, temperature=1.0)
    best = writer.generate("the", best_of=8, n=3, seed=2, max_tokens=9, temperature=1.0)
    ranked = sorted(all_of_them, key=lambda one: -np.mean(one.logprobs))
    assert [one.text for one in best] == [one.text for one in ranked[:3]]
    assert best[0].logprobs is None


def test_each_prompt_may_have_options_of_its_own(writer):
    prompts = ["the cat", "a", "the"]
    each = [{"temperature": 0}, {"top_k": 2, "seed": 9}, {"max_tokens": 3, "stop": " "}]
    together = writer.generate(prompts, each=each, seed=5, max_tokens=20)
    for prompt, own, found in zip(prompts, each, together, strict=True):
        assert found.text == writer.generate(prompt, **{"seed": 5, "max_tokens": 20, **own}).text


def test_next_tokens_are_what_is_drawn(writer):
    controls = {"temperature": 0.8, "top_k": 4, "repetition_penalty": 1.3}
    expected = dict(writer.next_tokens("the cat", None, as_ids=True, **controls))
    assert len(expected) == 4
    drawn = writer.generate("the cat", n=4000, max_tokens=1, seed=1, **controls)
    counts = {token: sum(one.token_ids == [token] for one in drawn) / 4000 for token in expected}
    assert counts == pytest.approx({token: np.exp(logprob) for token, logprob in expected.items()}, abs=0.03)
    assert [logprob for _, logprob in writer.next_tokens("the cat")] == sorted(
        (logprob for _, logprob in writer.next_tokens("the cat")), reverse=True
    )


# ---- every option, everywhere --------------------------------------------------------------------------

NOT_OFFERED_BY_GENERATE = {
    "attention",
    "cancelled",
    "coverage_penalty",
    "keep_names",
    "logits_processor",
    "logprobs",
    "prompt_logprobs",
}


def test_every_option_is_documented_and_on_the_command_line():
    names = set(GenerationOptions.__dataclass_fields__)
    assert names == set(Options.__annotations__)
    page = (Path(__file__).parent.parent / "docs" / "options.md").read_text()
    assert [name for name in names if f"`{name}`" not in page] == []
    generate = _parser()._subparsers._group_actions[0].choices["generate"]
    offered = {action.dest for action in generate._actions}
    assert names - offered == NOT_OFFERED_BY_GENERATE


def test_options_that_can_be_read_once_count_for_every_prompt(lm):
    prompts = ["once", "once"]
    lists = {"stop": ["e"], "bad_words": ["a"], "stop_token_ids": [32], "allowed_token_ids": list(range(97, 123))}
    for name, value in lists.items():
        wanted = lm.generate(prompts, each=[{}, {"seed": 9}], seed=5, **{name: value})
        found = lm.generate(prompts, each=[{}, {"seed": 9}], seed=5, **{name: iter(value)})
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]


def test_plans_do_not_pile_up(lm):
    for number in range(600):
        lm.generate("once", max_tokens=0, cancelled=lambda: False, seed=1)
        lm.generate("once", max_tokens=0, temperature=1 + number / 1000, seed=1)
    assert len(lm._plans) <= 256
    assert any(1.599 in [value for _, _, value in key[1:]] for key in lm._plans)


def test_a_bad_token_of_a_prompt_is_named_by_its_place(lm):
    long = lm.encode("once upon a time there was a")
    lm.generate(long, max_tokens=1)
    bad = [*long, 3, 100_000]
    with pytest.raises(ValueError, match=f"token 100000 at place {len(bad) - 1}"):
        lm.generate(bad)
    with pytest.raises(ValueError, match="token -1 at place 1"):
        lm.generate([long[0], -1], token_healing=True)


def test_lists_of_any_kind(lm):
    once, twice = lm.generate("ab", seed=1, bad_words=[[97], [98, 99]]), np.array([[97, 97], [98, 99]])
    assert once.token_ids == lm.generate("ab", seed=1, bad_words=iter([np.array([97]), (98, 99)])).token_ids
    assert "bc" not in lm.generate("ab", seed=1, bad_words=twice).text
    stops = {"a": "e"}
    first = lm.generate("ab", seed=1, stop=stops.values())
    stops["a"] = first.text[:1] or "q"
    assert lm.generate("ab", seed=1, stop=stops.values()).text == ""
    assert lm.generate("ab", seed=1, stop=np.array(["e"])).text == first.text
    for option in ({"bad_words": [b"Peter"]}, {"must_include": [b"rain"], "num_beams": 2}):
        with pytest.raises(TypeError, match="expected texts or token ids, found b'"):
            lm.generate("ab", **option)
    with pytest.raises(TypeError, match=r"each\[0\]: expected a mapping of options, found NoneType"):
        lm.generate(["a", "b"], each=[None, {}])
    with pytest.raises(TypeError, match="did you mean num_beams"):
        lm.generate("ab", beam_size=2)
    for option in ({"max_tokens": 0}, {"stop": "x"}, {"deadline_ms": 1}):
        with pytest.raises(ValueError, match="next_tokens has no"):
            lm.next_tokens("ab", **option)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"choices": ["a\ud800"]}, ValueError, "choices='a.ud800': not valid Unicode"),
        ({"regex": "\ud800"}, ValueError, "regex=.*not valid Unicode"),
        ({"stop": np.array("x")}, TypeError, "stop=.*expected a list, found one ndarray"),
        ({"samplers": {"top_k": 1}}, TypeError, "samplers=.*expected a list, found dict"),
        ({"must_include": bytearray(b"ab"), "num_beams": 2}, TypeError, "must_include=.*found bytearray"),
        ({"temperature": 10**5000}, ValueError, "temperature=inf: expected 0 to 1000"),
    ],
)
def test_values_that_cannot_be_used_are_named(lm, options, error, message):
    with pytest.raises(error, match=message):
        lm.generate("ab", **options)
    with pytest.raises(error, match=message):
        lm.generate(["ab", "c"], each=[{}, {}], **options)
