# SPDX-License-Identifier: Apache-2.0
"""A language model whose tokenizer puts a space before a text (`Tokenizer.lead`): nobody sees it."""

import re
from itertools import pairwise

import numpy as np
import pytest

import fastlm
from conftest import random_weights
from fastlm.goals import Include
from fastlm.tokenizer import train_bpe

SAMPLE = "Once upon a time there was a rabbit. He lived in a hole. (The end of the tale, said the rabbit, 12 times.)\n"


@pytest.fixture(scope="module")
def led(tmp_path_factory):
    known = train_bpe([SAMPLE], 320, "line", lead=True)
    path = tmp_path_factory.mktemp("led") / "m.gguf"
    fastlm.export(random_weights(known.vocab_size, 16, (24,)), path, tokenizer=known)
    return fastlm.load(path)


def test_texts_do_not_begin_with_it(led):
    lead = [token for token, piece in enumerate(led.tokenizer.pieces) if piece.startswith(b" r")]
    found = led.generate("", max_tokens=1, allowed_token_ids=lead, seed=1)
    assert found.text == led.tokenizer.pieces[found.token_ids[0]].decode().lstrip()
    assert "".join(led.stream("", max_tokens=9, seed=1)) == led.generate("", max_tokens=9, seed=1).text
    behind = led.generate("the", max_tokens=1, allowed_token_ids=lead, seed=1)
    assert behind.text == led.tokenizer.pieces[behind.token_ids[0]].decode()
    score = led.score("rabbit in a hole")
    assert "".join(score.pieces) == "rabbit in a hole"
    assert score.token_ids == led.encode("rabbit in a hole")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "rab+it [0-9]{2}"}, r"rab+it [0-9]{2}"),
        ({"choices": ["hole", "tale"]}, r"hole|tale"),
        ({"grammar": 'start: "a" NUMBER\nNUMBER: /[0-9]{3}/'}, r"a[0-9]{3}"),
        ({"json_schema": {"enum": [[1, 2], "x"]}}, r'\[1, ?2\]|"x"'),
    ],
)
def test_forms_are_of_the_text_without_it(led, form, pattern):
    for options in ({"seed": 3}, {"num_beams": 3}):
        for prompt in ("", "the"):
            found = led.generate(prompt, max_tokens=30, **form, **options)
            assert found.satisfied
            assert re.fullmatch(pattern, found.text), found.text
    session = led.session(seed=1, **form)
    assert re.fullmatch(pattern, session.generate(30).text)


def test_what_is_fed_behind_a_text_has_none(led):
    once = led.state().feed("the rabbit")
    twice = led.state().feed("the").feed(" rabbit")
    assert np.array_equal(once.logprobs(), twice.logprobs())
    session = led.session(seed=1)
    session.feed("rab").feed("bit")
    assert session.tokens == [led.bos, *led.encode("rab"), *led.tokenizer.encode_inside("bit")]


def test_words_are_found_with_and_without_a_space_before_them(led):
    for word in ("rabbit", "hole"):
        assert word in led.generate("", max_tokens=12, num_beams=4, must_include=[word]).text
    banned = led.tokenizer.encode_inside("(")
    inside = led.tokenizer.encode_inside("rabbit")
    forced = [*banned, *inside]
    found = led.generate(banned, max_tokens=len(inside), allowed_token_ids=forced, bad_words=["rabbit"], seed=2)
    assert found.token_ids != inside
    assert "rabbit" not in found.text


def test_healed_prompts_are_no_shorter(led):
    for prompt in ("rab", "the rab", "O"):
        found = led.generate(prompt, max_tokens=6, token_healing=True, echo=True, seed=1)
        assert found.text.startswith(prompt)
        plain = led.generate(prompt, max_tokens=6, token_healing=True, seed=1)
        assert found.text == prompt + plain.text


def test_compressed_texts_come_back(led):
    for text in ("rabbit", " rabbit", "  ", "", SAMPLE):
        assert led.decompress(led.compress(text.encode())) == text.encode()


def test_suggested_words_are_those_that_begin_so(led):
    found = led.suggest("rab", 3)
    assert all(isinstance(text, str) and not text.startswith(" ") for text, _ in found)
    assert [text for text, _ in led.suggest("", 3)] == [text.strip() for text, _ in led.suggest("", 3)]
    assert all(one >= other for (_, one), (_, other) in pairwise(found))


def test_goals_of_a_text_from_nothing_are_refused(led):
    with pytest.raises(ValueError, match="puts a space before a text"):
        led.generate("", goals=[Include("rabbit")], max_tokens=8)
    assert "rabbit" in led.generate("the", goals=[Include("rabbit")], max_tokens=8).text
