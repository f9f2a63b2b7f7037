# SPDX-License-Identifier: Apache-2.0
"""Beam search against its definition and against all texts there are, on models of a few tokens."""

import itertools
import re
import time

import numpy as np
import pytest

import fastlm
import reference
from conftest import random_weights

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
    with pytest.raises(ValueError, match="draws nothing"):
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
        ({"num_beams": 3, "stop": "x"}, "so there is no stop"),
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
    with pytest.raises(ValueError, match=r"^max_steps=0: expected 1 to"):
        lm.most_likely("ab", max_steps=0)
