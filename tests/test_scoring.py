# SPDX-License-Identifier: Apache-2.0
"""Scores of many texts, of words, of lines on the command line; and candidates ranked anew."""

import gzip
import json

import numpy as np
import pytest

import fastlm
from conftest import LEVELS, random_weights
from fastlm.cli import main
from fastlm.tokenizer import train_words

LINES = ["the cat sat on the mat", "", "a dog", "the the the", "on and on it went until the sun was down"] * 9


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A model of words, to which a line is a text."""
    known = train_words([" ".join(LINES)], 12)
    path = tmp_path_factory.mktemp("words") / "m.gguf"
    fastlm.export(random_weights(known.vocab_size, 6, (10,)), path, tokenizer=known)
    return str(path)


@pytest.mark.parametrize("isa", LEVELS)
def test_many_texts_side_by_side_score_as_one_by_one(byte_model, isa):
    model = fastlm.load(byte_model, isa=isa)
    random = np.random.default_rng(1)
    texts = ["x" * int(n) + "yz"[: n % 3] for n in random.integers(0, 70, 150)] + [[1, 2, 3], [7], []]
    alone = [model.score(text) for text in texts]
    assert model.score(texts) == alone
    assert list(model.score(iter(texts))) == alone


def test_any_iterable_is_scored_as_it_comes(lm):
    taken = 0

    def texts():
        nonlocal taken
        for n in range(100_000):
            taken += 1
            yield f"text number {n}"

    scores = lm.score(texts())
    first = [next(scores) for _ in range(3)]
    assert taken < 2000
    assert first == lm.score([f"text number {n}" for n in range(3)])


def test_what_cannot_be_scored_is_said(lm):
    with pytest.raises(TypeError, match="text 1: a prompt is a str"):
        list(lm.score(iter(["a", 5.5])))
    with pytest.raises(TypeError, match="expected a text, token ids, or several of them, found int"):
        lm.score(5)
    with pytest.raises(ValueError, match="documents=True"):
        lm.score(iter(["a"]), documents=True)
    with pytest.raises(ValueError, match="text 0: token 999 at place 1"):
        lm.score([[1, 999], [2]])


def test_words_have_scores_that_add_up(lm, words):
    text = "  the cat\nsat  on "
    score = lm.score(text)
    assert [word for word, _ in score.words] == ["the", "cat", "sat", "on", ""]
    assert sum(logprob for _, logprob in score.words) == pytest.approx(score.total)
    score = fastlm.load(words).score("the zebra sat")
    assert [word for word, _ in score.words][0::2] == ["the", "sat"]
    assert score.unknown == 1


def test_lines_on_the_command_line(words, tmp_path, capsys):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    packed = tmp_path / "lines.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    model = fastlm.load(words)
    start = [model.score([model.eos, *model.encode(line), model.eos]) for line in LINES]
    for name in (path, packed):
        assert main(["score", "--model", words, "--per-line", str(name)]) == 0
        found = capsys.readouterr()
        rows = [line.split("\t") for line in found.out.splitlines()]
        for row, score in zip(rows, start, strict=True):
            assert float(row[0]) == pytest.approx(sum(score.logprobs[1:]), abs=1e-3)
            assert int(row[1]) == len(score.token_ids) - 1
        assert "unknown)" in found.err
    assert main(["score", "--model", words, "--per-line", "--json", str(path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == LINES
    path.write_bytes(b"\xff\xfe\n")
    assert main(["score", "--model", words, "--per-line", str(path)]) == 1
    assert "not UTF-8 text" in capsys.readouterr().err


def test_candidates_are_ranked_anew(words, tmp_path, capsys):
    model = fastlm.load(words)
    lines = ["1\tthe cat\t-3.5\tx", "1\tthe mat\t-1", "2\ta dog", "2\ta dog sat", "2\ton it"]
    for weight, length_weight in ((0.0, 0.0), (0.7, 0.0), (1.0, 2.0)):
        groups = list(fastlm.rescore(model, lines, weight, length_weight=length_weight))
        assert [{one.fields[0] for one in group} for group in groups] == [{"1"}, {"2"}]
        for group in groups:
            totals = [one.total for one in group]
            assert totals == sorted(totals, reverse=True)
            for one in group:
                own = float(one.fields[2]) if len(one.fields) > 2 else 0
                assert one.total == pytest.approx(
                    own + weight * one.score.total + length_weight * len(one.score.token_ids)
                )
    path = tmp_path / "nbest.tsv"
    path.write_text("\n".join(lines))
    assert main(["rescore", str(path), "--model", words, "--weight", "0", "--best"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["1", "the mat"], ["2", "a dog"]]
    path.write_text("1\tx\nno tab here\n")
    assert main(["rescore", str(path), "--model", words]) == 1
    assert "line 2: expected a key, a tab and a text" in capsys.readouterr().err
    with pytest.raises(ValueError, match="line 1: expected a score in the third field, found 'high'"):
        list(fastlm.rescore(model, ["1\tx\thigh"]))
