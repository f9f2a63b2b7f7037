# SPDX-License-Identifier: Apache-2.0
"""Suggestions against words whose probabilities are added up one by one."""

import itertools
import math
import random
import time

import numpy as np
import pytest

import fastlm
from conftest import random_weights
from fastlm.tokenizer import ByteTokenizer, CharTokenizer, train_bpe, train_words

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


def by_definition(model, context, typed, most, behind_space=False):
    """Probabilities of whole words by what completes them: all token paths of at most `most` tokens. behind_space:
    of words that a space begins, without it."""
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

    if not behind_space:
        go(context, "", 1.0, 0)
        return found
    typed = " "
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


def distance(a, b):
    """Optimal string alignment."""
    rows = [[i + j if not i * j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


@pytest.mark.parametrize("typos", [1, 2])
@pytest.mark.parametrize(("context", "typed"), [("", "ab"), ("a cab. ", "cba"), ("a bca. ", "bb"), ("a ", "acb")])
@pytest.mark.parametrize("kind", ["chars", "bpe"])
def test_words_with_typos_are_weighed_by_them(request, kind, context, typed, typos):
    """What was typed is the beginning of the word but for so many typos, each a hundredth as likely."""
    model = request.getfixturevalue(kind)
    found = model.suggest(context + typed, k=4, typos=typos)
    assert found.replaces == len(typed)
    behind_space = context.endswith(" ")
    start = model.state().feed(context[:-1] if behind_space else context)
    weighed = {}
    for word, p in by_definition(model, start, "", 5 + behind_space, behind_space).items():
        nearest = min(distance(word[:n], typed) for n in range(len(word) + 1))
        if word and nearest <= typos:
            weighed[word] = p * 0.01**nearest
    total, slack = sum(weighed.values()), math.exp(found.bound) + 0.03
    for word, logprob in found:
        nearest = min(distance(word[:n], typed) for n in range(len(word) + 1))
        assert nearest <= typos
        if len(word) < 5:
            assert math.exp(logprob) == pytest.approx(weighed[word] / total, abs=slack)
    assert found[0][0] == max(weighed, key=weighed.get) or slack > 0.2


def test_typos_of_a_finished_word_count_for_nothing(chars):
    assert chars.suggest("a cab ", typos=2) == chars.suggest("a cab ")
    assert chars.suggest("a cab ", typos=2).replaces == 0
    for typos in (-1, 4, True, 1.0):
        with pytest.raises(ValueError, match="expected a whole number from 0 to 3"):
            chars.suggest("a", typos=typos)


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
    assert lm.suggest("Once upon a tiem", typos=1)[0][0] == "time"
    assert lm.suggest("Peter Rabit", typos=1)[0][0] == "Rabbit"
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


def test_what_is_said_to_be_exact_is_exact(chars, bpe, monkeypatch):
    """With more steps the same words come."""
    r, claims = random.Random(4), 0
    for model, name in ((chars, "chars"), (bpe, "bpe"), (fastlm.load("stories"), "stories")):
        for _ in range(60):
            letters = "abcde" if name != "stories" else "abcdefghijklmnopqrstuvwxyz"
            prefix = "a cab. " + "".join(r.choices(letters[: 3 if name != "stories" else 26], k=r.randrange(12)))
            found = model.suggest(prefix, 3)
            monkeypatch.setattr("fastlm.suggest.MOST_STEPS", 2000)
            more = model.suggest(prefix, 3)
            monkeypatch.undo()
            assert found.bound <= 1e-6
            if not found.exact:
                continue
            claims += 1
            assert [word for word, _ in found] == [word for word, _ in more]
    assert claims > 20
    assert not fastlm.load("stories").suggest("The x" + "zq" * 40).exact


def test_more_words_than_steps_are_not_claimed_to_be_known(tmp_path):
    """A branch lists only as many tokens as can be followed."""
    letters = [chr(0x4E00 + n) for n in range(300)]
    known = CharTokenizer.train(["".join(letters) + " "])
    weights = random_weights(known.vocab_size, 5, (9,), seed=4)
    weights["output.kernel"] *= 0
    weights["output.bias"] = np.linspace(0, 0.1, known.vocab_size).astype(np.float32)
    fastlm.export(weights, tmp_path / "m.gguf", tokenizer=known)
    found = fastlm.load(tmp_path / "m.gguf").suggest("", 5)
    assert not found.exact
    assert math.exp(found.bound) > 0.5


def test_long_words_with_typos_take_no_longer(bpe):
    begin = time.perf_counter()
    bpe.suggest("a " + "ab" * 500, typos=3)
    assert time.perf_counter() - begin < 2


def test_a_model_without_start_suggests_from_nothing(tmp_path):
    fastlm.export(random_weights(257, 4, (6,), seed=2), tmp_path / "m.gguf", tokenizer=ByteTokenizer())
    model = fastlm.load(tmp_path / "m.gguf")
    model.bos = None
    assert isinstance(model.suggest("", 2), list)
    assert isinstance(model.suggest("cab", 2, typos=1), list)


def test_what_is_spelt_right_is_found_with_typos_too():
    lm = fastlm.load("stories")
    for prefix in ("He saw the skunk", "Her name was Margaret", "The old gray rabbit"):
        exact = lm.suggest(prefix)
        word = prefix.rpartition(" ")[2]
        found = [text for text, _ in lm.suggest(prefix, typos=1)]
        assert not exact or word + exact[0][0] in found
        assert found
    for typed, meant in [("skunck", "skunk"), ("wodchuck", "woodchuck"), ("rabibt", "rabbit"), ("litle", "little")]:
        assert any(text.startswith(meant) for text, _ in lm.suggest("They saw the " + typed, typos=1))
