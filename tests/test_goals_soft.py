# SPDX-License-Identifier: Apache-2.0
"""Soft goals: what is measured, what is found, what is chosen, and what it costs."""

import itertools
import json
import math
import re

import numpy as np
import pytest

import fastlm
from conftest import random_weights
from fastlm import format
from fastlm.cli import main
from fastlm.goals import (
    Brief,
    Custom,
    Deadline,
    Diverse,
    Exclude,
    Experts,
    Fudge,
    Include,
    Label,
    Length,
    Like,
    Likely,
    Search,
    Specific,
    Unlike,
    hypervolume,
)
from fastlm.goals.tradeoffs import Lane, _kept, _lattice, explored, front, measured, ranked
from fastlm.options import GenerationOptions
from fastlm.tokenizer import ByteTokenizer
from fastlm.weights import ClassifierWeights

PROMPT = "Once upon a time there was a fox who"


def classifier_file(path, both=False):
    """Of random weights, over bytes: what it likes is arbitrary, but the same each time."""
    r = np.random.default_rng(5)

    def uniform(*size, limit=0.8):
        return r.uniform(-limit, limit, size).astype(np.float32)

    weights = {"embedding": uniform(257, 12)}
    for name in ("lstm.0", "lstm.0.reverse")[: 1 + both]:
        weights |= {
            f"{name}.kernel": uniform(12, 64),
            f"{name}.recurrent_kernel": uniform(16, 64),
            f"{name}.bias": uniform(64),
        }
    weights |= {"output.kernel": uniform(16 * (1 + both), 2, limit=6), "output.bias": uniform(2)}
    metadata = {"lstm.classifier.labels": ["bad", "good"]}
    format.write(path, ClassifierWeights.from_dict(weights, "last"), ByteTokenizer().fields() | metadata)
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return fastlm.load(classifier_file(tmp_path_factory.mktemp("judge") / "judge.gguf"))


@pytest.fixture(scope="module")
def stories():
    return fastlm.load("stories")


# ---- what is measured ----------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
def test_a_growing_text_is_judged_as_a_whole_one(stories, both, tmp_path):
    judge = fastlm.load(classifier_file(tmp_path / "j.gguf", both))
    goals = [Label(judge, "good"), Likely(), Like(stories), Unlike(stories)]
    ids = stories._ids(PROMPT)
    lane = Lane(PROMPT, ids)
    tokens = stories.encode(" went to the river. He didn't see\nthe bear, ")
    for end in (1, 4, 5, 9, len(tokens)):
        new = tokens[len(lane.tokens) : end]
        logprobs = stories.score([*ids, *tokens[:end]]).logprobs[-len(new) :]
        lane.extend(stories, new, list(logprobs))
        values = measured(stories, goals, [lane])[0]
        whole = judge.classify(PROMPT + lane.text)["good"]
        assert goals[0].shown(values[0]) == pytest.approx(whole, abs=1e-5)
        scored = stories.score([*ids, *tokens[:end]]).logprobs[len(ids) :]
        assert values[1] == pytest.approx(np.mean(scored), abs=1e-5)
        assert values[2] == pytest.approx(values[1], abs=1e-5)
        assert values[3] == -values[2]
        fork = lane.copy(1)
        fork.extend(stories, stories.encode(" sea sea"), [0.0, 0.0])  # disturbs nothing of what it comes from
        measured(stories, goals, [fork])


def test_texts_are_measured_as_people_would():
    lanes = [Lane("", None) for _ in range(3)]
    for lane, text in zip(lanes, ["the cat and the cat sat", "one two three. Four", ""], strict=True):
        lane.text = text
    assert [goal.values(lanes, [None] * 3) for goal in (Diverse(), Diverse(1), Brief(), Brief("sentences"))] == [
        [4 / 5, 1, 1],
        [4 / 6, 1, 1],
        [-6, -4, 0],
        [-1, -2, 0],
    ]
    assert Custom(lambda text: text.count("a")).values(lanes, [None] * 3) == [4, 0, 0]
    with pytest.raises(ValueError, match="expected a finite number, the function gave 'x'"):
        Custom(lambda text: "x").values(lanes, [None] * 3)


# ---- what is found -------------------------------------------------------------------------------------


def test_the_front_is_what_nothing_is_better_than():
    r = np.random.default_rng(0)
    for columns in (1, 2, 3):
        values = r.integers(0, 6, (40, columns)).astype(float)
        found, rows = front(values), values.tolist()
        for n, row in enumerate(rows):
            beaten = any(
                all(a >= b for a, b in zip(one, row, strict=True)) and (one != row or m < n)
                for m, one in enumerate(rows)
                if m != n
            )
            assert (n in found) != beaten


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_hypervolume_is_that_of_boxes(columns):
    r = np.random.default_rng(1)
    values = r.integers(-1, 5, (12, columns))
    cells = np.array(list(itertools.product(range(5), repeat=columns)))
    filled = sum(any((cell < row).all() for row in values) for cell in cells)
    assert hypervolume(values, [0] * columns) == filled


def test_weightings_are_spread_evenly():
    for goals, count in ((2, 8), (3, 12), (4, 8)):
        found = np.array(list(_lattice(goals, count)))
        assert found.shape == (count, goals)
        assert np.allclose(found.sum(1), 1)
        assert len(np.unique(found.argmax(1))) == goals
    values = np.array([[0, 3], [1, 2], [2, 1], [3, 0.0]])
    kept = _kept(values, [Likely(), Brief()], [np.array([1, 0.0])] * 4 + [np.array([0, 1.0])])
    assert kept == [(0, True), (1, True), (2, True), (3, True), (3, False)]


def test_lanes_begin_as_a_prompt_does(stories):
    """Their log-probabilities are those that the model gives the text: one start of text, not two."""
    for prompt in ("", PROMPT):
        found = stories.generate(prompt, goals=[Likely()], seed=1, max_tokens=12, logprobs=True, search=Search(lanes=2))
        ids = [*stories._ids(prompt), *found.token_ids]
        assert found.logprobs == stories.score(ids).logprobs[-len(found.token_ids) :]
        plan, limits = stories._plan({"max_tokens": 12, "logprobs": True}), stories._limits(GenerationOptions.of({}))
        lanes = explored(stories, prompt, stories._ids(prompt), [Likely()], plan, Search(), 2, 1, limits)
        for lane in lanes:
            expected = stories.score([*lane.ids, *lane.tokens]).logprobs[-len(lane.tokens) :]
            assert lane.logprobs == pytest.approx(expected, abs=1e-5)


def test_what_is_chosen():
    values = np.array([[-10, 0], [-6, -5], [0, -10.0], [-7, -7]])
    goals = [Likely(), Brief()]
    assert ranked(values, [Likely(weight=3), Brief()], "weights")[0] == 2
    assert ranked(values, [Likely(), Brief(weight=3)], "weights")[0] == 0
    assert ranked(values, goals, "fairest")[0] == 1
    assert ranked(values, [Likely(priority=1), Brief()], "priority")[0] == 2
    assert ranked(values, [Likely(), Brief(priority=1)], "priority")[0] == 0
    assert ranked(values, [Likely(at_least=-6), Brief(at_least=-6)], "weights")[0] == 1
    # What comes first is had as far as is wanted, whatever others lack.
    assert ranked(values, [Likely(at_least=0, priority=1), Brief(at_least=-6)], "priority")[0] == 2
    assert ranked(values, [Likely(at_least=-6, priority=1), Brief()], "priority")[0] == 1


def test_forked_texts_have_more_than_drafts(stories, judge):
    """With the same number of tokens; the label is that of a random network, which no text has by itself."""
    goals, better = [Label(judge, "good"), Likely(weight=0.3)], 0
    for seed in range(4):
        found = [
            stories.generate(PROMPT, goals=goals, search=Search(method=method, lanes=8), max_tokens=24, seed=seed)
            for method in ("fork", "best_of_n")
        ]
        values = [one.tradeoff.values for one in found]
        low = np.vstack(values).min(0) - 1e-6
        better += hypervolume(values[0], low) > hypervolume(values[1], low)
        for one in found:
            assert one.goals[0].achieved == pytest.approx(judge.classify(PROMPT + one.text)["good"], abs=1e-5)
            assert one.tradeoff.front[0].text == one.text
            assert len(one.token_ids) <= 24
    assert better >= 3


def test_brief_texts_end_with_their_first_sentence(stories):
    for seed in range(3):
        text = stories.generate("Once upon a time", goals=[Likely(), Brief(weight=5)], max_tokens=60, seed=seed)
        assert text.finish_reason == "stop"
        assert len(text.text.split()) < 20
        assert re.search(r"[.!?…]['\"]*$", text.text), text.text
    enough = stories.generate("Once upon a time", goals=[Brief(at_least=-10), Likely()], max_tokens=40, seed=1)
    assert enough.goals[0].satisfied


def test_the_same_seed_gives_the_same_text(stories, judge):
    goals = [Label(judge, "good", at_least=0.7), Likely()]
    one, again = (stories.generate(PROMPT, goals=goals, seed=3, max_tokens=16) for _ in range(2))
    assert one.token_ids == again.token_ids
    few = stories.generate(PROMPT, goals=goals, seed=3, max_tokens=6, n=5, search=Search(lanes=2))
    assert len(few) == 5
    texts = stories.generate([PROMPT, [5, 6, 7]], goals=goals, seed=3, max_tokens=16, n=2)
    assert texts[0][0].token_ids == one.token_ids
    assert len({tuple(text.token_ids) for group in texts for text in group}) == 4


def test_hard_goals_come_first(stories, judge):
    goals = [Brief(), Exclude("the"), Label(judge, "good"), Length("words", 4, 9)]
    found = stories.generate(PROMPT, goals=goals, seed=1, max_tokens=40)
    assert [one.goal for one in found.goals] == goals
    assert found.goals[1].satisfied
    assert found.goals[3].satisfied
    assert found.goals[0].achieved == -found.goals[3].achieved
    with_word = stories.generate(PROMPT, goals=[Include("sea"), Likely()], seed=1, max_tokens=30, best_of=3)
    assert with_word.satisfied
    assert len(with_word.tradeoff.values) == 3


def test_prices_and_deadlines(stories):
    common, rare = [Exclude(["a", "the", "was", "had", "he", "to"]), Length("words", 9, 9)], [Exclude("zebra")]
    texts = [
        [stories.generate(PROMPT, goals=goals, seed=seed, max_tokens=20) for seed in range(3)]
        for goals in (common, rare)
    ]
    dear, cheap = (np.mean([one.goals[0].price for one in group]) for group in texts)
    assert dear > cheap
    assert texts[0][0].goals[0].price == texts[0][0].goals[1].price
    late = stories.generate(PROMPT, goals=[Deadline(1)], seed=1, max_tokens=2000)
    assert late.finish_reason == "deadline"
    assert not late.goals[0].satisfied
    assert str(late.goals[0]).startswith("within 1 ms: missed by ")
    assert math.isnan(late.goals[0].price)
    assert stories.generate(PROMPT, goals=[Deadline(60_000)], seed=1, max_tokens=5).satisfied


def test_what_pulls_is_said_and_drawn(stories, tmp_path):
    goals = [Brief(), Custom(lambda text: text.count(" "), "spaces")]
    found = stories.generate(PROMPT, goals=goals, seed=1, max_tokens=30, search=Search(lanes=24))
    said = found.tradeoff.pulls()
    assert not said or "brief, in words and spaces pull against each other" in said[0]
    pytest.importorskip("matplotlib")
    found.tradeoff.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000
    three = stories.generate(PROMPT, goals=[*goals, Likely()], seed=1, max_tokens=9, search=Search(lanes=6)).tradeoff
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in three.plot().axes]
    names = [f"{name}, more is better" for name in ("brief, in words", "spaces", "likely")]
    assert labels == [(names[0], names[1]), (names[0], names[2]), (names[1], names[2])]


# ---- published methods ---------------------------------------------------------------------------------


def test_experts_are_a_product(stories):
    """Of a model and itself: the logits at half the temperature; without itself: all tokens alike."""
    options = {"seed": 1, "max_tokens": 9, "top_p": 1.0}
    twice = stories.generate(PROMPT, logits_processor=Experts(stories, like=stories), temperature=1, **options)
    cold = stories.generate(PROMPT, temperature=0.5, **options)
    assert twice.token_ids == cold.token_ids
    logits = np.random.default_rng(0).normal(size=stories.vocab_size).astype(np.float32)
    ids = list(stories._ids(PROMPT))
    same = Experts(stories, like=stories, unlike=stories, alpha=2)
    for end in (5, 6, 7, len(ids)):  # a token at a time, and several
        assert np.allclose(same(ids[:end], logits), logits, atol=1e-4)


def test_fudge_weighs_tokens_by_the_label(stories, judge):
    logits = np.random.default_rng(0).normal(size=stories.vocab_size).astype(np.float32)
    ids = list(stories._ids(PROMPT))
    fudge = Fudge(stories, judge, "good", strength=2.0, top_k=7)
    for end in (4, len(ids) - 1, len(ids)):
        found = fudge(ids[:end], logits)
        top = np.argsort(-logits)[:7]
        assert set(np.flatnonzero(found > -np.inf)) == set(top)
        for token in top:
            text = stories.decode([*ids[:end], int(token)])
            assert found[token] - logits[token] == pytest.approx(2 * math.log(judge.classify(text)["good"]), abs=1e-4)
    written = stories.generate(PROMPT, logits_processor=fudge, seed=1, max_tokens=8)
    assert len(written.token_ids) == 8


# ---- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, j: Likely(weight=0), "weight=0: expected a number above 0"),
        (lambda s, j: Likely(weight="much"), "weight='much': expected a number"),
        (lambda s, j: Brief("lines"), "unit='lines': expected one of tokens"),
        (lambda s, j: Likely(weight=10**400), "expected a finite number"),
        (lambda s, j: s.generate("a", goals=[Custom(lambda text: math.inf)], max_tokens=4), "gave inf"),
        (lambda s, j: s.generate("a", goals=[Likely()], best_of=20), r"best_of: with soft goals say Search\(lanes"),
        (lambda s, j: s.generate("a", goals=[Likely()], temperature=0), "temperature=0: of soft goals"),
        (lambda s, j: Diverse(0), "n=0: expected a whole number from 1 on"),
        (lambda s, j: Custom(3), "expected a function of a text"),
        (lambda s, j: Label(j, "fine"), "label='fine': the classifier knows bad, good"),
        (lambda s, j: Label(s, "good"), "expected a classifier, as fastlm"),
        (lambda s, j: Label(j, "good", at_least=1.5), "at_least=1.5: expected a probability"),
        (lambda s, j: Brief(at_least=10), "Brief: at_least=10: expected a number up to 0, as its values are"),
        (lambda s, j: Likely(at_least=0.5), "Likely: at_least=0.5: expected a number up to 0"),
        (lambda s, j: Unlike(s, at_least=-1), "Unlike: at_least=-1: expected a number from 0"),
        (lambda s, j: Diverse(at_least=1.5), "Diverse: at_least=1.5: expected a number from 0 to 1"),
        (lambda s, j: Like(j), "expected a language model"),
        (lambda s, j: Like("stories"), "expected a language model"),
        (lambda s, j: Experts(s), "expected a model like which"),
        (lambda s, j: Fudge(s, j, "good", top_k=0), "top_k=0: expected a whole number"),
        (lambda s, j: Deadline(0), "ms=0: expected a finite number above 0"),
        (lambda s, j: Search(method="magic"), "method='magic': expected one of fork, best_of_n"),
        (lambda s, j: Search(lanes=0), "lanes=0: expected a whole number"),
        (lambda s, j: s.generate("a", search=Search()), "search: without goals"),
        (lambda s, j: s.generate("a", goals=[Include("a")], search=Search()), "search: it is for soft goals"),
        (lambda s, j: s.generate("a", goals=[Likely()], search=3), "expected a fastlm.goals.Search"),
        (lambda s, j: s.generate("a", goals=[Likely()], contrastive_model=s), "say Unlike"),
        (lambda s, j: s.generate("a", goals=iter([Likely()])), "expected a list of goals"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(call, message, stories, judge):
    with pytest.raises((TypeError, ValueError), match=message):
        call(stories, judge)


def test_models_of_other_vocabularies_are_refused(stories, lm):
    with pytest.raises(ValueError, match="Like: model: it has another vocabulary"):
        stories.generate(PROMPT, goals=[Like(lm)], max_tokens=4)
    for method, match in (
        (lambda: Experts(stories, unlike=lm), "Experts: unlike: it has another vocabulary"),
        (lambda: Specific(stories, lm), "Specific: generic: it has another vocabulary"),
    ):
        with pytest.raises(ValueError, match=match):
            method()
    with pytest.raises(TypeError, match="Specific: generic='stories': expected a language model"):
        Specific(stories, "stories")


def test_soft_goals_in_a_file(tmp_path, capsys):
    classifier_file(tmp_path / "judge.gguf")
    fastlm.export(random_weights(257, 16, (24,)), tmp_path / "bytes.gguf", tokenizer=ByteTokenizer())
    rows = [
        {"likely": True, "weight": 2},
        {"label": "good", "classifier": "judge.gguf", "at_least": 0.01, "priority": 1},
        {"unlike": "bytes.gguf"},
        {"diverse": 2},
        {"brief": "words"},
        {"deadline": 60000},
    ]
    (tmp_path / "g.json").write_text(json.dumps(rows))
    command = ["generate", "abc", "--model", str(tmp_path / "bytes.gguf"), "--max-tokens", "12", "--seed", "1"]
    assert main([*command, "--goals", str(tmp_path / "g.json"), "--choose", "priority"]) == 0
    assert capsys.readouterr().out
    rows[1]["at_least"] = 0.999999
    (tmp_path / "most.json").write_text(json.dumps(rows))
    assert main([*command, "--goals", str(tmp_path / "most.json")]) == 1
    said = capsys.readouterr()
    assert said.out
    assert "label 'good', at least 0.999999: 0." in said.err
    assert main([*command, "--choose", "priority"]) == 1
    assert "--choose: it is for --goals" in capsys.readouterr().err
    for bad, message in (
        ({"likely": 3}, "likely=3: expected true"),
        ({"label": "good"}, "expected the 'classifier'"),
        ({"like": 3}, "expected a model's file"),
        ({"like": "none.gguf"}, r"none\.gguf"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps([bad]))
        with pytest.raises((ValueError, OSError), match=message):
            fastlm.goals.read_goals(tmp_path / "bad.json")


def test_probabilities_and_odds_go_together(judge):
    goal = Label(judge, "good", at_least=0.9)
    assert goal.shown(goal.enough) == pytest.approx(0.9)
    assert [goal.shown(odds) for odds in (-800, 0, 800)] == [0, 0.5, 1]
    assert Label(judge, "good", at_least=1 - 1e-12).enough < 21  # not more than any text can have
    assert math.isinf(Likely().enough)
