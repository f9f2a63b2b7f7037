# SPDX-License-Identifier: Apache-2.0
"""Beam search against its definition and against all texts there are, on models of a few tokens."""

import itertools
import re
import time
import tracemalloc
from array import array

import numpy as np
import pytest

import fastlm
import reference
from conftest import LEVELS, random_weights
from fastlm import _engine
from fastlm.search import Found, by_risk
from fastlm.tokenizer import train_bpe, train_words

VOCAB, END = 5, 0


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Models of 5 tokens, of which the first ends a text, and their weights."""
    folder, made = tmp_path_factory.mktemp("toys"), []
    for seed in range(6):
        weights = random_weights(VOCAB, 4, (6,), seed=seed, scale=3.0)
        fastlm.export(weights, folder / f"{seed}.gguf", eos=END)
        made.append((fastlm.load(folder / f"{seed}.gguf"), weights))
    return made


class Oracle:
    """Log-probabilities of the next token after any tokens."""

    def __init__(self, weights, prompt):
        self.weights, self.prompt, self.known = weights, list(prompt), {}

    def __call__(self, tokens):
        if tokens not in self.known:
            rows = reference.logits(self.weights, [*self.prompt, *tokens])
            self.known[tokens] = reference.log_softmax(rows[-1])
        return self.known[tokens]


def by_definition(logprobs, beams, most, power, early, groups=1, diversity=0.0):
    """Hugging Face's search (transformers 5), one step after the other: list of (score, tokens with their end)."""
    width = beams // groups
    state = [{"live": [(0.0, ())], "done": [], "over": False} for _ in range(groups)]
    for length in range(1, most + 1):
        chosen = np.zeros(VOCAB)
        for group in state:
            if group["over"]:
                continue
            candidates = []
            for place, (score, tokens) in enumerate(group["live"]):
                row = logprobs(tokens) - diversity * chosen
                candidates += [(score + row[t], -place, -t, (*tokens, t)) for t in range(VOCAB)]
            best = sorted(candidates, reverse=True)[: 2 * width]
            live = []
            for rank, (score, _, _, tokens) in enumerate(best):
                ends = tokens[-1] == END or length == most
                if ends and rank < width:
                    group["done"].append((score / length**power, tokens))
                elif not ends:
                    live.append((score, tokens))
            group["live"] = live[:width]
            group["done"] = sorted(group["done"], key=lambda one: -one[0])[:width]
            for _, tokens in group["live"]:
                chosen[tokens[-1]] += 1
            if not group["live"]:
                group["over"] = True
            elif len(group["done"]) == width:
                farthest = most if early == "never" and power > 0 else length
                bound = group["live"][0][0] / farthest**power
                group["over"] = early is True or not bound > group["done"][-1][0]
    return sorted((one for group in state for one in group["done"]), key=lambda one: -one[0])


def whole(completion):
    """Its tokens with the end, if that is how it ended."""
    return (*completion.token_ids, *([END] if completion.finish_reason == "stop" else []))


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("power", [0.0, 1.0, -0.5, 2.0])
def test_beams_are_those_of_the_definition(toys, early, power):
    for (model, weights), beams, most in itertools.product(toys, (2, 3, 5), (1, 3, 6)):
        prompt = [1, 2]
        expected = by_definition(Oracle(weights, prompt), beams, most, power, early)
        options = {"num_beams": beams, "max_tokens": most, "length_penalty": power, "early_stopping": early}
        found = model.generate(prompt, n=beams, **options)
        assert [whole(one) for one in found] == [tokens for _, tokens in expected]
        assert [one.score for one in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_diverse_beams_are_those_of_the_definition(toys):
    for (model, weights), diversity in itertools.product(toys, (0.3, 2.0)):
        expected = by_definition(Oracle(weights, [3]), 6, 5, 1.0, False, 3, diversity)
        options = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": diversity, "max_tokens": 5}
        found = model.generate([3], n=6, **options)
        assert sorted(whole(one) for one in found) == sorted(tokens for _, tokens in expected)
        assert [one.score for one in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_enough_beams_find_the_likeliest_of_all_texts(toys):
    most = 3
    for model, weights in toys:
        logprobs, best = Oracle(weights, [4]), (-np.inf, ())
        for length in range(1, most + 1):
            for tokens in itertools.product(range(VOCAB), repeat=length):
                if END in tokens[:-1] or (length < most and tokens[-1] != END):
                    continue
                score = sum(logprobs(tokens[:n])[tokens[n]] for n in range(length)) / length
                best = max(best, (score, tokens))
        found = model.generate([4], num_beams=64, max_tokens=most, early_stopping="never")
        assert whole(found) == best[1]
        assert found.score == pytest.approx(best[0], abs=1e-5)


@pytest.mark.parametrize("power", [0.0, 1.0, -0.5])
def test_exact_search_finds_the_likeliest_of_all_texts(toys, power):
    most = 4
    for model, weights in toys:
        logprobs, texts = Oracle(weights, [4]), []
        for length in range(1, most + 1):
            for tokens in itertools.product(range(VOCAB), repeat=length):
                if END in tokens[:-1] or (length < most and tokens[-1] != END):
                    continue
                score = sum(logprobs(tokens[:n])[tokens[n]] for n in range(length)) / length**power
                texts.append((score, tokens))
        expected = sorted(texts, reverse=True)[:3]
        found, proof = model.most_likely([4], 3, max_tokens=most, length_penalty=power)
        assert proof.proven
        assert [whole(one) for one in found] == [tokens for _, tokens in expected]
        assert [one.score for one in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
        assert proof.bound == pytest.approx(expected[-1][0], abs=1e-5)
        (once,), proof = model.most_likely([4], max_tokens=most, length_penalty=power, max_steps=1)
        assert proof.bound >= expected[0][0] - 1e-5
        assert proof.proven == (whole(once) == expected[0][1] and proof.bound <= once.score)


def test_exact_search_follows_controls_and_forms(lm):
    (found,), proof = lm.most_likely("ab", max_tokens=5, regex="[a-c]{2,4}x")
    assert proof.proven
    assert re.fullmatch("[a-c]{2,4}x", found.text)
    texts = ["".join(t) + "x" for n in (2, 3, 4) for t in itertools.product("abc", repeat=n)]
    scores = {t: sum(lm.score([lm.bos, *b"ab", *t.encode()]).logprobs[3:]) for t in texts}
    assert scores[found.text] == pytest.approx(max(scores.values()), abs=1e-4)
    with pytest.raises(ValueError, match="most_likely has no top_k"):
        lm.most_likely("ab", top_k=5)


def test_controls_and_forms_act_on_beams(lm):
    found = lm.generate("ab", num_beams=4, n=4, max_tokens=12, no_repeat_ngram_size=2)
    for one in found:
        tokens = [lm.bos, *b"ab", *one.token_ids]
        pairs = list(itertools.pairwise(tokens))
        assert len(set(pairs)) == len(pairs)
    found = lm.generate("ab", num_beams=3, n=3, max_tokens=12, regex="[a-c]{2,5}x")
    assert all(re.fullmatch("[a-c]{2,5}x", one.text) and one.satisfied for one in found)
    plain = lm.generate("ab", num_beams=3, max_tokens=8)
    assert lm.generate("ab", num_beams=3, max_tokens=8, bad_words=[plain.token_ids[:1]]).token_ids != plain.token_ids
    assert lm.generate(["ab", "c"], num_beams=3, max_tokens=8)[0].token_ids == plain.token_ids


def test_many_searches_go_on_in_parts(lm):
    prompts = ["a", "The dog", "Once"] * 15
    options = {"num_beams": 3, "max_tokens": 4}
    alone = {prompt: lm.generate(prompt, **options).text for prompt in prompts[:3]}
    assert [one.text for one in lm.generate(prompts, **options)] == [alone[prompt] for prompt in prompts]


def test_a_search_that_is_over_has_a_reason_of_its_own(lm):
    each = [{"max_tokens": 0}, {"max_tokens": 10**5, "min_tokens": 10**5}, {"max_tokens": 1}]
    found = lm.generate(["a", "a", "a"], each=each, num_beams=2, deadline_ms=300)
    assert [one.finish_reason for one in found] == ["length", "deadline", "length"]


def test_beams_keep_what_they_were_given(lm):
    """The caller's arrays may change; what is no beam is refused."""
    plan = lm._plan({"temperature": 0})
    states, tokens, totals = [_engine.State(lm._engine)], array("i", [65]), array("d", [0.0])
    beams = _engine.Beams(states, tokens, totals, plan.sampling, 3)
    tokens[0] = 10**9
    states.append(_engine.State(lm._engine))
    with lm._decoder() as decoder:
        [best] = decoder.extend([beams])
        assert len(best) == 3
        for wrong, error in (([None], TypeError), ([], ValueError), ([beams, beams], ValueError)):
            with pytest.raises(error):
                decoder.extend(wrong)


def test_searches_side_by_side_find_what_each_finds_alone(lm):
    """Some look back at their text and some do not, and they end at different steps."""
    prompts = ["Once", "The dog", "a", "He saw the", "It was a dark night and"]
    each = [
        {"max_tokens": 0},
        {"repetition_penalty": 1.3},
        {"min_tokens": 4},
        {"regex": "( [a-z]+){3}"},
        {"length_penalty": 0.0},
    ]
    options = {"num_beams": 4, "n": 3, "max_tokens": 14}
    together = lm.generate(prompts, each=each, **options)
    alone = [lm.generate(prompt, **{**options, **own}) for prompt, own in zip(prompts, each, strict=True)]
    assert [[(one.text, one.score) for one in group] for group in together] == [
        [(one.text, one.score) for one in group] for group in alone
    ]


def test_a_search_keeps_a_deadline(lm):
    begin = time.perf_counter()
    found = lm.generate("ab", num_beams=5, max_tokens=10**6, min_tokens=10**6, deadline_ms=50)
    assert time.perf_counter() - begin < 0.5
    assert found.finish_reason == "deadline"
    assert found.token_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3, "top_k": 5}, "draws nothing, so there is no top_k"),
        ({"num_beams": 3, "temperature": 0.5}, "so there is no temperature"),
        ({"num_beams": 3, "n": 4}, "n=4: a search of num_beams=3 finds no more"),
        ({"num_beams": 3, "stop": "x"}, "together with stop is not supported"),
        ({"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, "cannot be shared out to num_beam_groups=2"),
        ({"num_beams": 4, "num_beam_groups": 2}, "without a diversity_penalty would all find the same"),
        ({"length_penalty": 1.0}, "length_penalty=1.0 does nothing without num_beams"),
        ({"num_beams": 2, "early_stopping": "soon"}, 'expected True, False or "never"'),
        ({"num_beams": 65}, "num_beams=65: expected 1 to 64"),
    ],
)
def test_what_a_search_cannot_do_is_said(lm, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lm.generate("ab", **options)


def test_searches_are_not_streamed(lm):
    for call in (lm.stream, lm.session, lm.next_tokens):
        with pytest.raises((ValueError, TypeError), match="num_beams"):
            call(*(() if call == lm.session else ("ab",)), num_beams=2)


def test_a_search_may_find_fewer_than_asked_for(lm):
    """Each prompt has its own, however many these are."""
    groups = lm.generate(["ab", "cd"], num_beams=4, n=3, max_tokens=0)
    assert [[one.token_ids for one in group] for group in groups] == [[[]], [[]]]
    pytest.importorskip("llguidance")
    groups = lm.generate(["ab", "cd"], num_beams=4, n=4, max_tokens=8, choices=["x", "yz"])
    assert [sorted(one.text for one in group) for group in groups] == [["x", "yz"], ["x", "yz"]]
    nothing = lm.generate("ab", num_beams=4, max_tokens=8, choices=["x"], allowed_token_ids=[ord("q")])
    assert (nothing.finish_reason, nothing.satisfied) == ("unsatisfiable", False)


def test_no_proof_where_a_token_could_raise_a_score(lm):
    for option in ({"frequency_penalty": -0.5}, {"presence_penalty": -0.5}, {"logit_bias": {97: 1.0}}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}.*nothing could be proved"):
            lm.most_likely("ab", max_tokens=3, **option)
    with pytest.raises(ValueError, match=r"^n=65: expected 1 to 64"):
        lm.most_likely("ab", 65)
    with pytest.raises(ValueError, match=r"^max_steps=0: expected a whole number from 1 on"):
        lm.most_likely("ab", max_steps=0)


# ---- what a text must include ----------------------------------------------------------------------------


def _includes(tokens, phrase):
    return any(tokens[at : at + len(phrase)] == phrase for at in range(len(tokens)))


def _texts_with_logprobs(weights, prompt, most):
    """All texts of at most so many tokens, with their ends, and the log-probability of each."""
    logprobs = Oracle(weights, prompt)
    for length in range(1, most + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            if END not in tokens[:-1] and (length == most or tokens[-1] == END):
                yield tokens, sum(logprobs(tokens[:n])[tokens[n]] for n in range(length))


@pytest.mark.parametrize("phrases", [[(1,)], [(3, 3)], [(1, 2), (4,)], [(2,), (2, 3)], [(1, 1, 2), (2, 4)]])
def test_exact_search_finds_the_likeliest_text_that_includes_phrases(toys, phrases):
    most = 4
    for model, weights in toys:
        every = [
            (total, tokens)
            for tokens, total in _texts_with_logprobs(weights, [4], most)
            if all(_includes(tokens, phrase) for phrase in phrases)
        ]
        found, proof = model.most_likely([4], 2, max_tokens=most, must_include=phrases)
        assert proof.proven
        assert [whole(one) for one in found] == [tokens for _, tokens in sorted(every, reverse=True)[:2]]
        beams = model.generate([4], num_beams=12, n=4, max_tokens=most, length_penalty=0.0, must_include=phrases)
        likely = {tokens: total for total, tokens in every}
        for one in beams:
            assert one.satisfied == (not one.missing) == all(_includes(tuple(one.token_ids), p) for p in phrases)
            assert not one.satisfied or one.score == pytest.approx(likely[whole(one)], abs=1e-5)
        assert beams[0].satisfied
        assert [one.satisfied for one in beams] == sorted((one.satisfied for one in beams), reverse=True)
        wide = model.generate([4], num_beams=64, max_tokens=most, length_penalty=0.0, must_include=phrases)
        assert wide.score == pytest.approx(max(every)[0], abs=1e-5)


def test_what_cannot_be_included_is_named(lm):
    found = lm.generate("ab", num_beams=4, max_tokens=5, must_include=["xyz", "qrs"])
    assert found.finish_reason == "length"
    assert not found.satisfied
    assert found.missing in (["xyz"], ["qrs"])
    assert lm.generate("ab", num_beams=4, max_tokens=8, must_include=["xyz", "yzx"]).text.count("xyzx") == 1
    assert "xyz" in lm.generate("ab", num_beams=2, max_tokens=8, must_include="xyz").text
    both = lm.generate("ab", num_beams=4, max_tokens=9, must_include=["xyz", [ord("q"), ord("q")]])
    assert "xyz" in both.text
    assert "qq" in both.text
    assert lm.generate("ab", num_beams=4, max_tokens=0, must_include=[[5]]).missing == [(5,)]
    with pytest.raises(ValueError, match="must_include: an empty word"):
        lm.generate("ab", num_beams=4, must_include=[""])
    with pytest.raises(ValueError, match="must_include: 300 at place 0"):
        lm.generate("ab", num_beams=4, must_include=[[300]])
    with pytest.raises(ValueError, match=r"must_include=.* does nothing without num_beams"):
        lm.generate("ab", must_include=["x"])


def test_phrases_and_forms_go_together(lm):
    pytest.importorskip("llguidance")
    found = lm.generate("ab", num_beams=6, max_tokens=20, must_include=["77", "q"], regex="[a-z]{3}=[0-9]{4}")
    assert re.fullmatch("[a-z]{3}=[0-9]{4}", found.text)
    assert found.satisfied
    found = lm.generate("ab", num_beams=6, max_tokens=20, must_include=["77", "Q"], regex="[a-z]{3}=[0-9]{4}")
    assert (found.satisfied, found.missing) == (False, ["Q"])


@pytest.mark.parametrize("train", [train_bpe, train_words])
def test_phrases_of_every_tokenizer(tmp_path, train):
    known = train(["the cat sat on the mat, and the dog sat by the door. " * 30], 280 if train is train_bpe else 40)
    fastlm.export(random_weights(known.vocab_size, 8, (12,), seed=5), tmp_path / "m.gguf", tokenizer=known)
    model = fastlm.load(tmp_path / "m.gguf")
    for words in (["dog"], ["cat", "dog"], ["sat on"]):
        found = model.generate("the", num_beams=5, max_tokens=15, must_include=words)
        assert found.satisfied
        assert all(word in found.text for word in words)
    if train is train_words:
        with pytest.raises(ValueError, match="no tokens for 'zebra'"):
            model.generate("the", num_beams=5, must_include=["zebra"])


# ---- sampling without replacement --------------------------------------------------------------------------


def test_texts_are_drawn_without_replacement(toys):
    """The first as any text, the second by its probability among the others."""
    model, weights = toys[1]
    temperature, draws = 1.0, 6000
    texts = {tokens: np.exp(total) for tokens, total in _texts_with_logprobs(weights, [4], 2)}
    assert sum(texts.values()) == pytest.approx(1)
    second = {b: sum(p * texts[b] / (1 - p) for a, p in texts.items() if a != b) for b in texts}
    counts = [dict.fromkeys(texts, 0), dict.fromkeys(texts, 0)]
    for seed in range(draws):
        pair = model.generate([4], n=2, max_tokens=2, without_replacement=True, temperature=temperature, seed=seed)
        assert pair[0].token_ids != pair[1].token_ids or pair[0].finish_reason != pair[1].finish_reason
        for count, one in zip(counts, pair, strict=True):
            count[whole(one)] += 1
            assert np.exp(one.score) == pytest.approx(texts[whole(one)], rel=1e-4)
    for count, expected in zip(counts, (texts, second), strict=True):
        common = [tokens for tokens in texts if expected[tokens] * draws >= 8]
        chi_square = sum((count[t] - draws * expected[t]) ** 2 / (draws * expected[t]) for t in common)
        assert chi_square < len(common) + 5 * (2 * len(common)) ** 0.5  # five deviations


def test_drawing_without_replacement_draws_what_controls_leave(toys, lm, byte_model):
    model, _weights = toys[2]
    every = model.generate([1], n=64, max_tokens=2, without_replacement=True, top_k=3, seed=3)
    assert len(every) <= 9
    assert len({whole(one) for one in every}) == len(every)
    assert sum(np.exp(one.score) for one in every) == pytest.approx(1, abs=1e-4)
    again = model.generate([[1], [1]], n=64, max_tokens=2, without_replacement=True, top_k=3, seed=3)
    assert [[whole(one) for one in group] for group in again] == [[whole(one) for one in every]] * 2
    options = {"n": 5, "max_tokens": 12, "without_replacement": True, "seed": 9, "temperature": 0.8}
    pytest.importorskip("llguidance")
    for extra in ({"repetition_penalty": 1.3, "top_p": 0.9}, {"regex": "[a-z ]+"}, {"min_tokens": 9}):
        found = lm.generate("once", **options, **extra)
        assert len({one.text for one in found}) == 5
        assert all(one.seed == 9 for one in found)
        for isa in LEVELS:
            other = fastlm.load(byte_model, isa=isa).generate("once", **options, **extra)
            assert [one.text for one in other] == [one.text for one in found]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "does nothing without n"),
        ({"n": 65}, "draws 2 to 64"),
        ({"n": 2, "temperature": 0}, "temperature=0 always takes the likeliest"),
        ({"n": 2, "num_beams": 4}, "together with num_beams"),
        ({"n": 2, "stop": "x"}, "together with stop"),
        ({"n": 2, "mirostat_tau": 3.0}, "together with mirostat_tau"),
    ],
)
def test_what_does_not_go_with_it_is_refused(lm, options, message):
    with pytest.raises(ValueError, match=message):
        lm.generate("ab", without_replacement=True, **options)


def test_a_text_that_may_end_in_several_ways_is_drawn_once(toys):
    model, weights = toys[3]
    for seed in range(300):
        found = model.generate([1], n=5, max_tokens=2, stop_token_ids=[2, 3], without_replacement=True, seed=seed)
        assert len({tuple(one.token_ids) for one in found}) == len(found)
    first = [
        model.generate([1], n=2, max_tokens=2, stop_token_ids=[2, 3], without_replacement=True, seed=seed)[0].token_ids
        for seed in range(4000)
    ]
    logprobs = np.exp(Oracle(weights, [1])(()))
    assert first.count([]) / 4000 == pytest.approx(logprobs[[END, 2, 3]].sum(), abs=0.03)
    found, _ = model.most_likely([1], 6, max_tokens=2, stop_token_ids=[2, 3])
    assert len({(tuple(one.token_ids), one.finish_reason) for one in found}) == len(found)


def test_a_search_goes_on_until_phrases_are_there(lm):
    pytest.importorskip("llguidance")
    choices = ["a cat", "the dog", "the dog and a zebra in Zurich"]
    for early in (False, True, "never"):
        found = lm.generate(
            "ab", num_beams=3, max_tokens=40, choices=choices, must_include="zebra", early_stopping=early
        )
        assert found.text == choices[2]


def test_a_recommended_temperature_of_0_draws_no_several_texts(byte_model, tmp_path):
    weights = random_weights(257, 4, (6,))
    fastlm.export(weights, tmp_path / "m.gguf", sampling={"temperature": 0.0}, bos=256)
    model = fastlm.load(tmp_path / "m.gguf")
    for options in ({"n": 3}, {"n": 3, "without_replacement": True}, {"best_of": 2}):
        with pytest.raises(ValueError, match="recommends temperature=0"):
            model.generate([1], **options)
    assert len(model.generate([1], n=3, temperature=1.0, max_tokens=4)) == 3
    assert len(model.generate([1], n=3, num_beams=3, max_tokens=4)) == 3


def test_what_was_asked_before_changes_no_answer(lm):
    lm.generate("ab", num_beams=3, max_tokens=2)
    with pytest.raises(ValueError, match="there is no seed"):
        lm.generate("ab", num_beams=3, max_tokens=2, seed=5)
    one, other = lm.session(seed=1, top_k=5), lm.session(seed=2, top_k=5)
    assert bytes(lm.session(seed=2, top_k=5)) == bytes(other) != bytes(one)
    for option in ({"n": 3}, {"best_of": 3}, {"n": 3, "without_replacement": True}):
        with pytest.raises(ValueError, match="next_tokens has no"):
            lm.next_tokens("ab", **option)
    assert lm.generate("ab", num_beams=2, max_tokens=3, logprobs=False, stop=[], seed=None).text
    with pytest.raises(ValueError, match="num_beams: as many texts"):
        lm.most_likely("ab", max_tokens=2, num_beams=1)
    assert lm.most_likely("ab", max_tokens=1, max_steps=10**6)[1].proven
    with pytest.raises(ValueError, match="expected 0 to 1000"):
        lm.generate("ab", temperature=10**400)
    with pytest.raises(TypeError, match="found bytes"):
        lm.generate("ab", temperature=b"0.5")


# ---- searches of long texts, and of forms ------------------------------------------------------------------


def test_an_exact_search_keeps_little_in_memory(lm):
    tracemalloc.start()
    _, proof = lm.most_likely("once", 3, max_tokens=30, repetition_penalty=1.2, max_steps=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (proof.proven, proof.reason) == (False, "steps")
    assert proof.steps >= 2000
    assert peak < 2**26  # as Python counts; what the engine holds is freed with each text followed


def test_exact_search_says_why_nothing_is_proven(lm):
    assert lm.most_likely("ab", max_tokens=0)[0][0].text == ""
    assert lm.most_likely("ab", max_tokens=1)[1].reason is None
    assert lm.most_likely("ab", max_tokens=50, deadline_ms=0.001)[1].reason == "deadline"
    assert lm.most_likely("ab", max_tokens=50, cancelled=lambda: True)[1].reason == "cancelled"
    with pytest.raises(ValueError, match="most_likely has no top_k"):
        lm.most_likely("ab", top_k=5)


def test_texts_with_their_form_come_first(lm):
    pytest.importorskip("llguidance")
    options = {"regex": "[a-c]{2,9}x", "max_tokens": 6}
    found = lm.generate("ab", num_beams=32, n=32, **options)
    assert [one.satisfied for one in found] == sorted((one.satisfied for one in found), reverse=True)
    assert found[0].satisfied
    likely, proof = lm.most_likely("ab", 3, **options)
    assert proof.proven
    assert all(one.satisfied and re.fullmatch(options["regex"], one.text) for one in likely)
    assert found[0].text in [one.text for one in likely]
    assert lm.most_likely("ab", regex="[a-c]{8}x", max_tokens=4)[0] == []
    cut = lm.generate("ab", choices=["cat"], stop=["a"])
    assert (cut.text, cut.satisfied) == ("c", False)


def by_expected_f1(texts, scores):
    """Places in the order of the mean F1 of words with all texts, each weighing as much as it is likely."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    shares = np.exp(np.array(scores) - np.logaddexp.reduce(scores))

    def f1(one, other):
        common = sum(min(one.count(word), other.count(word)) for word in set(one))
        return 2 * common / (len(one) + len(other)) if one or other else 1.0

    expected = [sum(share * f1(one, other) for share, other in zip(shares, words, strict=True)) for one in words]
    return sorted(range(len(texts)), key=lambda n: -expected[n])


def found_with(scores):
    return [Found((n,), "stop", 0, score, None) for n, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ((-0.1, -9.0, -9.0), [0, 1, 2]),  # the likeliest knows most
        ((-1.0, -1.1, -1.2), [1, 2, 0]),  # two that are alike against one
        ((-5.0, -4.0, -9.0), [1, 2, 0]),
    ],
)
def test_risk_goes_by_scores_and_likeness(scores, order):
    texts = [["x"], ["a", "b", "c"], ["a", "b", "d"]]
    found = found_with(scores)
    assert [one.tokens[0] for one in by_risk(found, texts)] == order
    assert order == by_expected_f1([" ".join(text) for text in texts], scores)


def test_risk_of_texts_without_words():
    assert [one.tokens[0] for one in by_risk(found_with((-0.1, -9.0)), [[], ["minus"]])] == [0, 1]
    assert [one.tokens[0] for one in by_risk(found_with((-0.1, -9.0)), [[], []])] == [0, 1]
    assert by_risk(found_with((-np.inf,)), [[]])[0].tokens == (0,)


def test_the_text_of_least_risk_comes_first(lm):
    how = {"num_beams": 16, "n": 16, "max_tokens": 24, "length_penalty": 0.5, "no_repeat_ngram_size": 3}
    plain = lm.generate("Once upon a time", **how)
    found = lm.generate("Once upon a time", mbr=True, **how)
    order = by_expected_f1([str(one) for one in plain], [one.score for one in plain])
    assert order != list(range(16))
    assert [str(one) for one in found] == [str(plain[n]) for n in order]
    assert [one.score for one in found] == [plain[n].score for n in order]
    assert lm.generate("Once upon a time", mbr=True, **{**how, "n": 1}).text == found[0].text


def test_least_risk_without_words_and_with_phrases(toys):
    model, _ = toys[0]
    plain = model.generate([1], num_beams=8, n=8, max_tokens=4)
    found = model.generate([1], num_beams=8, n=8, max_tokens=4, mbr=True)
    order = by_expected_f1([" ".join(map(str, one.token_ids)) for one in plain], [one.score for one in plain])
    assert [one.token_ids for one in found] == [plain[n].token_ids for n in order]
    assert model.generate([1], num_beams=2, max_tokens=0, mbr=True).token_ids == []
    stories = fastlm.load("stories")
    wanted = {"must_include": ["umbrella", "dog"], "num_beams": 8, "n": 8, "max_tokens": 20}
    assert [len(one.missing) for one in stories.generate("Once", mbr=True, **wanted)] == [0] * 3 + [1] * 5
    with pytest.raises(ValueError, match="mbr=True does nothing without num_beams"):
        stories.generate("a", mbr=True)
    with pytest.raises(ValueError, match="most_likely has no mbr"):
        stories.most_likely("a", mbr=True)


def test_thousands_of_choices(lm):
    pytest.importorskip("llguidance")
    choices = [f"{n} (no. {n * n}) [.*]" for n in range(3000)]
    assert lm.generate("ab", choices=choices, seed=1).text in choices


def test_texts_of_a_search_have_their_own_logprobs(lm):
    """Of the model itself, whatever controls did to them."""
    for options in (
        {"num_beams": 3, "n": 3},
        {"num_beams": 3, "n": 3, "repetition_penalty": 1.5},
        {"n": 3, "without_replacement": True, "temperature": 0.5, "seed": 1},
    ):
        for one in lm.generate("once upon", max_tokens=6, logprobs=True, **options):
            expected = lm.score([lm.bos, *lm.encode("once upon"), *one.token_ids]).logprobs[-len(one.token_ids) :]
            assert one.logprobs == pytest.approx(expected, abs=1e-6)
    assert lm.generate("ab", num_beams=2, max_tokens=2).logprobs is None
    found, _ = lm.most_likely("ab", max_tokens=2, min_tokens=2, logprobs=True)
    assert sum(found[0].logprobs) == pytest.approx(found[0].score, abs=1e-5)
    for option in ({"num_beams": 2}, {"n": 2, "without_replacement": True}):
        with pytest.raises(ValueError, match="together with logprobs=5 is not supported"):
            lm.generate("ab", logprobs=5, **option)
