# SPDX-License-Identifier: Apache-2.0
"""Texts of a given form: every one has it, or says that it has not."""

import json
import re

import pytest

import fastlm
from conftest import random_weights
from fastlm.tokenizer import ByteTokenizer, CharTokenizer, train_bpe, train_words

TEXT = 'the cat sat on 12 mats: {"name": "Tom", "age": 7}, [true, false, null]. Yes or no? '
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["chars", "bytes", "bpe"])
def writer(request, tmp_path_factory):
    known = {
        "chars": lambda: CharTokenizer.train([TEXT]),
        "bytes": ByteTokenizer,
        "bpe": lambda: train_bpe([TEXT * 20], 300),
    }[request.param]()
    path = tmp_path_factory.mktemp("writer") / "m.gguf"
    fastlm.export(random_weights(known.vocab_size, 8, (12,), seed=3), path, tokenizer=known)
    return fastlm.load(path)


PATTERNS = [
    r"[a-z]{3,8}",
    r"(yes|no|maybe)(, (yes|no))*\.",
    r"[0-9]{1,3}(\.[0-9])?",
    r"the [^x]{1,9}!?",
    r"(ab|a)(bc|c)?",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_match_the_expression(writer, pattern):
    alphabet = set(b"".join(writer.tokenizer.pieces).decode(errors="ignore"))
    done = 0
    for seed in range(20):
        found = writer.generate("the", regex=pattern, max_tokens=200, seed=seed, temperature=1.5)
        if found.finish_reason == "unsatisfiable":  # letters that these characters lack
            assert not set("!ybmx.") <= alphabet
            assert found.satisfied is False
            continue
        assert found.satisfied
        assert re.fullmatch(pattern, found.text), found.text
        done += 1
    assert done or "!" not in alphabet


def test_json_is_of_its_schema(writer):
    for seed in range(12):
        found = writer.generate("", json_schema=SCHEMA, max_tokens=400, seed=seed, temperature=1.0)
        assert found.satisfied, found.text
        value = json.loads(found.text)
        assert set(value) == {"name", "age"}
        assert len(value["name"]) <= 5
        assert 0 <= value["age"] <= 99
    same = writer.generate("", json_schema=json.dumps(SCHEMA), max_tokens=400, seed=seed, temperature=1.0)
    assert same.text == found.text


def test_choices_and_grammars(writer):
    choices = ["the cat", "the mats", "12", "[true]"]
    found = {writer.generate("", choices=choices, seed=seed, temperature=3.0).text for seed in range(60)}
    assert found <= set(choices)
    assert len(found) > 1
    grammar = 'start: "[" NUMBER ("," NUMBER)* "]"\nNUMBER: /[0-9]/'
    text = writer.generate("", grammar=grammar, seed=1, max_tokens=500, temperature=1.0).text
    assert re.fullmatch(r"\[\d(,\d)*\]?", text)


def test_a_text_cut_short_says_so(writer):
    found = writer.generate("", regex="[a-z]{30}", max_tokens=3, seed=1)
    assert (found.finish_reason, found.satisfied) == ("length", False)
    assert writer.generate("", max_tokens=3, seed=1).satisfied is None


def test_a_form_is_followed_however_one_asks(writer):
    options = {"regex": r"[a-z ,.]{5,40}", "seed": 4, "temperature": 1.2, "top_p": 0.9, "max_tokens": 60}
    prompts = ["the", "on", "cat"]
    alone = [writer.generate(prompt, **options) for prompt in prompts]
    assert [one.text for one in writer.generate(prompts, **options)] == [one.text for one in alone]
    assert "".join(writer.stream("the", **options)) == alone[0].text
    many = writer.generate("the", n=3, **options)
    assert many[0].text == alone[0].text
    assert all(re.fullmatch(options["regex"], one.text) for one in many if one.satisfied)
    session, text = writer.session(**options).feed("the"), ""
    while True:
        part = session.generate(2)
        text += part.text
        if part.finish_reason != "length" or len(session.tokens) > 70:
            break
        session = writer.session(bytes(session))
    assert text == alone[0].text


def test_other_controls_act_within_the_form(writer):
    found = writer.generate("", regex="[a-c]{6}", no_repeat_ngram_size=2, temperature=0, max_tokens=9)
    pairs = list(zip(found.token_ids, found.token_ids[1:], strict=False))
    assert len(set(pairs)) == len(pairs)
    only = [t for t, piece in enumerate(writer.tokenizer.pieces) if piece in (b"a", b"t")]
    found = writer.generate("", regex="[a-z]{6}", allowed_token_ids=only, seed=2, max_tokens=9, temperature=1.0)
    assert set(found.text) <= {"a", "t"}
    assert len(found.text) == 6


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regex": "("}, ValueError, "regex='(' cannot be read"),
        ({"regex": 5}, TypeError, "regex=5: expected text"),
        ({"regex": "a", "choices": ["b"]}, ValueError, "regex and choices: a text has one form"),
        ({"json_schema": "{"}, ValueError, "json_schema is not JSON"),
        ({"json_schema": 5}, TypeError, "json_schema=5: expected a mapping"),
        ({"json_schema": {"type": "nonsense"}}, ValueError, "cannot be read"),
        ({"grammar": "start: X"}, ValueError, "cannot be read"),
        ({"choices": []}, ValueError, "an empty list leaves nothing to write"),
        ({"choices": "ab"}, TypeError, "expected several texts in a list"),
        ({"choices": ["a", ""]}, ValueError, "choices: expected texts, found ''"),
    ],
)
def test_a_form_that_cannot_be_read_is_an_error(writer, options, error, message):
    with pytest.raises(error) as caught:
        writer.generate("", **options)
    assert message in str(caught.value)


def test_words_joined_by_spaces_have_no_form(tmp_path):
    known = train_words([TEXT], 20)
    fastlm.export(random_weights(known.vocab_size, 6, (10,)), tmp_path / "m.gguf", tokenizer=known)
    with pytest.raises(ValueError, match="joins its tokens with spaces"):
        fastlm.load(tmp_path / "m.gguf").generate("", regex="a")


def test_healing_writes_the_end_of_a_prompt_anew(tmp_path):
    """The text follows the prompt, and its tokens may be such as the prompt's own tokens did not allow."""
    known = train_bpe(["the cat sat on the mat. " * 50], 280)
    fastlm.export(random_weights(known.vocab_size, 8, (12,), seed=5), tmp_path / "m.gguf", tokenizer=known)
    lm, healed = fastlm.load(tmp_path / "m.gguf"), 0
    for seed, prompt in enumerate(["the c", "the cat s", "on th", "the cat sat on the", "q", "the ca"] * 10):
        found = lm.generate(prompt, seed=seed, max_tokens=12, token_healing=True, temperature=1.0)
        ids = lm.encode(prompt)
        kept = next(
            n for n in range(len(ids), -1, -1) if known.decode(ids[:n] + found.token_ids) == prompt + found.text
        )
        healed += kept < len(ids)
        assert len(ids) - kept <= 4
        pieces = lm.stream(prompt, seed=seed, max_tokens=12, token_healing=True, temperature=1.0)
        assert "".join(pieces) == found.text
        assert (
            prompt + found.text
            == lm.generate(prompt, seed=seed, max_tokens=12, token_healing=True, temperature=1.0, echo=True).text
        )
    assert healed > 20
    with pytest.raises(ValueError, match="token_healing and regex"):
        lm.generate("the", token_healing=True, regex="a")


def test_a_form_that_ends_by_repetition_is_satisfied(lm):
    found = lm.generate("ab", regex="a{6}", stop_repeats=3, max_tokens=10)
    assert (found.finish_reason, found.satisfied) == ("repetition", False)
    found = lm.generate("ab", regex="a{3}", stop_repeats=3, max_tokens=10)
    assert found.satisfied


def test_an_error_of_a_form_says_why(lm):
    with pytest.raises(ValueError, match="unclosed character class"):
        lm.generate("ab", regex="[")
    with pytest.raises(TypeError, match=r"json_schema is not JSON: .*set"):
        lm.generate("ab", json_schema={"a": {1}})
    assert lm.generate("ab", json_schema=True, seed=1, max_tokens=40).text
