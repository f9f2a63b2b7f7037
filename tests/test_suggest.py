# SPDX-License-Identifier: Apache-2.0
"""Suggestions against words whose probabilities are added up one by one."""

import math

import numpy as np
import pytest

import fastlm
from conftest import random_weights
from fastlm.tokenizer import CharTokenizer, train_bpe, train_words

LETTERS = "abc .'"
TEXT = "a cab. bab a cca bc abba cab' a bca. cab ab ba "


@pytest.fixture(scope="module")
def chars(tmp_path_factory):
    path = tmp_path_factory.mktemp("chars") / "m.gguf"
    known = CharTokenizer.train([LETTERS])
    weights = random_weights(known.vocab_size, 5, (9,), seed=4, scale=2.0)
    weights["output.bias"][known.encode(" ")] += 2
    fastlm.export(weights, path, tokenizer=known)
    return fastlm.load(path)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "m.gguf"
    known = train_bpe([TEXT * 20], 270)
    weights = random_weights(known.vocab_size, 5, (9,), seed=4, scale=2.0)
    seen = {t for t in range(known.vocab_size) if set(known.pieces[t]) <= set(LETTERS.encode())}
    weights["output.bias"][[t for t in range(known.vocab_size) if t not in seen]] = -30
    weights["output.bias"][[t for t in seen if known.pieces[t].startswith(b" ")]] += 2
    fastlm.export(weights, path, tokenizer=known)
    return fastlm.load(path)


def is_word(text):
    return all(c.isalnum() or c in "'" for c in text)


def by_definition(model, context, typed, most):
    """Probabilities of whole words by what completes them: all token paths of at most `most` tokens."""
    pieces = [piece.decode(errors="replace") for piece in model.tokenizer.pieces]
    found = {}

    def go(state, text, p, depth):
        row = np.exp(state.logprobs().astype(np.float64))
        for token, piece in enumerate(pieces):
            mass = p * row[token]
            written = text + piece
            if not (written.startswith(typed) or typed.startswith(written)):
                continue
            behind = written[len(typed) :] if len(written) > len(typed) else ""
            before = text[len(typed) :] if len(text) >= len(typed) else None
            if piece and (len(written) <= len(typed) or is_word(behind)):
                if depth < most and mass > 1e-7:
                    go(state.copy().feed([token]), written, mass, depth + 1)
            elif before is not None or piece:
                word = before if before is not None and (not piece or not is_word(piece[:1])) else None
                if word is None:
                    end = next(n for n, c in enumerate(behind) if not is_word(c))
                    word = behind[:end]
                found[word] = found.get(word, 0.0) + mass

    go(context, "", 1.0, 0)
    return found


@pytest.mark.parametrize("prefix", ["", "a", "ab ", "cab. ca", "a b"])
def test_words_of_characters_are_the_likeliest(chars, prefix):
    found = chars.suggest(prefix, k=4)
    expected = by_definition(chars, chars.state().feed(prefix), "", 5)
    for completion, logprob in found:
        if len(completion) < 5:
            assert logprob == pytest.approx(math.log(expected[completion]), abs=1e-4)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    if found.exact:
        best = sorted(expected.values(), reverse=True)[:4]
        assert [math.exp(p) for _, p in found] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize(("context", "typed"), [("a cab.", " b"), ("a", " c"), ("a bca.", " ab")])
def test_words_of_several_tokens_add_up_their_paths(bpe, context, typed):
    found = bpe.suggest(context + typed, k=3)
    expected = by_definition(bpe, bpe.state().feed(context), typed, 5)
    total = sum(expected.values())
    slack = math.exp(found.bound) + 0.02
    for completion, logprob in found:
        assert math.exp(logprob) == pytest.approx(expected[completion] / total, abs=slack)
    best = max(expected, key=expected.get)
    assert best in [completion for completion, _ in found]


def test_a_keystroke_reads_only_what_it_adds(chars):
    text = "cab abba cab. "
    for n in range(9, len(text)):
        chars.suggest(text[:n])
    hits = chars._prefixes.hits
    assert chars.suggest(text + "c") == fastlm.Model.suggest(chars, text + "c")
    assert chars._prefixes.hits == hits + 2


def test_the_bundled_model_knows_its_words():
    lm = fastlm.load("stories")
    assert lm.suggest("Once upon a ti")[0][0] == "me"
    assert lm.suggest("Peter Rabbit ran hom", 1)[0][0] == "e"
    assert lm.suggest("The old gray ra", 3)[0][0] == "bbit"
    assert len(lm.suggest("He was ", 5)) == 5


def test_what_cannot_be_suggested_is_said(chars, tmp_path):
    with pytest.raises(ValueError, match="k=0: expected a whole number"):
        chars.suggest("a", 0)
    with pytest.raises(TypeError, match="expected text, found int"):
        chars.suggest(5)
    known = train_words([TEXT], 20)
    fastlm.export(random_weights(known.vocab_size, 6, (10,)), tmp_path / "m.gguf", tokenizer=known)
    with pytest.raises(ValueError, match="joins its tokens with spaces"):
        fastlm.load(tmp_path / "m.gguf").suggest("a")
