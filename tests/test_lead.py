# SPDX-License-Identifier: Apache-2.0
"""A language model whose tokenizer puts a space before a text (`Tokenizer.lead`): nobody sees it."""

import json
import re

import numpy as np
import pytest

import fastlm
from conftest import random_weights
from fastlm.goals import Include
from fastlm.tokenizer import HuggingFaceTokenizer, train_bpe

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


@pytest.fixture(scope="module")
def plain(led, tmp_path_factory):
    """The same weights and tokens, but texts stand as they are."""
    spec = json.loads(led.tokenizer.fields()["tokenizer.huggingface.json"])
    spec["pre_tokenizer"]["add_prefix_space"] = False
    known = HuggingFaceTokenizer(json.dumps(spec), led.bos, led.eos)
    path = tmp_path_factory.mktemp("plain") / "m.gguf"
    fastlm.export(random_weights(known.vocab_size, 16, (24,)), path, tokenizer=known)
    return fastlm.load(path)


def test_what_is_written_is_what_the_same_model_writes_behind_a_space(led, plain):
    for seed in range(5):
        one = led.generate("rabbit", max_tokens=12, seed=seed)
        assert one.token_ids == plain.generate(" rabbit", max_tokens=12, seed=seed).token_ids
    assert led.suggest("rab", 4) == plain.suggest(" rab", 4)
    assert led.suggest("", 4) == plain.suggest(" ", 4)
    assert led.suggest("the rab", 4, typos=1) == plain.suggest(" the rab", 4, typos=1)
    for prompt in ("rab", "the rab", "O"):
        healed = led.generate(prompt, max_tokens=6, token_healing=True, seed=1)
        assert " " + prompt + healed.text == plain.generate(" " + prompt, max_tokens=6, token_healing=True, seed=1,
                                                            echo=True).text  # fmt: skip
    for words in (["rabbit"], ["hole"], ["(The"]):
        options = {"num_beams": 3, "max_tokens": 9}
        for name in ("must_include", "bad_words"):
            one, other = (m.generate(p, **{name: words}, **options) for m, p in ((led, "a"), (plain, " a")))
            assert (one.token_ids, one.satisfied) == (other.token_ids, other.satisfied)


def test_every_document_has_its_own(led):
    documents = ["rabbit", "the hole"]
    ids = led.tokenizer.encode_documents(documents)
    assert led.decode(ids) == "".join(documents)
    fed = led.state().feed("a").feed([led.eos]).feed("rabbit")
    assert np.array_equal(fed.logprobs(), led.state().feed("a").feed([led.eos, *led.encode("rabbit")]).logprobs())
    session = led.session(seed=1).feed("a").feed([led.eos]).feed("rabbit")
    assert session.tokens == [led.bos, *led.encode("a"), led.eos, *led.encode("rabbit")]
    bare = led.state(start=False).feed("a").feed("b")
    ids = [*led.encode("a"), *led.tokenizer.encode_inside("b")]
    assert np.array_equal(bare.logprobs(), led.state(start=False).feed(ids).logprobs())


def test_a_phrase_with_a_space_before_it_does_not_begin_a_text(led):
    for said, text in (("rabbit", "rabbit"), (" rabbit", "said the rabbit")):
        options = {"choices": ["rabbit", "said the rabbit"], "must_include": [said], "length_penalty": 0.0}
        found = led.generate("", num_beams=3, max_tokens=12, **options)
        assert (found.text, found.satisfied) == (text, True)
    assert led.tokenizer.pieces[led.encode("rabbit")[0]].startswith(b" ")


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
            assert led.tokenizer.pieces[found.token_ids[0]].startswith(b" ") == (not prompt)
            assert re.fullmatch(pattern, found.text), found.text
    session = led.session(seed=1, **form)
    assert re.fullmatch(pattern, session.generate(30).text)


def test_what_is_fed_behind_a_text_has_none(led):
    once = led.state().feed([*led.encode("the"), *led.tokenizer.encode_inside("bit")])
    twice = led.state().feed("the").feed("bit")
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


def test_compressed_texts_come_back(led):
    for text in ("rabbit", " rabbit", "  ", "", SAMPLE):
        assert led.decompress(led.compress(text.encode())) == text.encode()
    assert len(led.compress(b"rabbit" * 9)) < 54 + 12, "tokens, not raw bytes"


def test_goals_of_a_text_from_nothing_are_refused(led):
    with pytest.raises(ValueError, match="puts a space before a text"):
        led.generate("", goals=[Include("rabbit")], max_tokens=8)
    assert "rabbit" in led.generate("the", goals=[Include("rabbit")], max_tokens=8).text
