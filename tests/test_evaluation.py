# SPDX-License-Identifier: Apache-2.0
"""Measures of what sequence-to-sequence models write."""

import io

import pytest

import fastlm
from fastlm.cli import main
from fastlm.evaluation import _MEASURES, calibration_error, evaluate
from fastlm.tokenizer import CharTokenizer
from test_seq2seq import weights_of


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    tokenizer = CharTokenizer.train(["abcdefghijklmnopqrstuvwxyz .,"])
    weights = weights_of(seed=1, V=tokenizer.vocab_size, attention="general")
    path = tmp_path_factory.mktemp("evaluation") / "m.gguf"
    fastlm.export(weights, path, tokenizer=tokenizer)
    return str(path)


SOURCES = ["a small house", "two dogs play", "the sea"]


def pairs_of(path, right):
    """As the model writes them, but for those that are not right."""
    written = fastlm.load(path).generate(SOURCES, max_tokens=12, temperature=0.0)
    return [
        (s, str(text).strip() if n < right else "zzz") for n, (s, text) in enumerate(zip(SOURCES, written, strict=True))
    ]


def test_measures_are_of_the_texts(path):
    lm = fastlm.load(path)
    report = evaluate(lm, pairs_of(path, 3), "answer", max_tokens=12, temperature=0.0)
    assert report.measures == pytest.approx({"accuracy": 100})
    assert report.pairs == len(report.texts) == 3
    report = evaluate(lm, pairs_of(path, 1), "answer", max_tokens=12, temperature=0.0)
    assert report.measures == pytest.approx({"accuracy": 100 / 3})
    assert evaluate(lm, [("a", "b c d e")], "translate", max_tokens=5).measures.keys() == {"bleu", "bleu_lower_case"}
    assert evaluate(lm, [("a", "b c")], "summarize", max_tokens=5).measures.keys() == {"rouge1", "rouge2", "rougeL"}
    with pytest.raises(ValueError, match="expected one of translate, summarize, answer"):
        evaluate(lm, [("a", "b")], "paint")
    with pytest.raises(ValueError, match="at least one pair"):
        evaluate(lm, [], "answer")


def test_measures_are_those_of_the_packages():
    """Worked out by hand."""
    measured, signature = _MEASURES["translate"]()(["The cat sat on the Mat ."], ["the cat sat on the mat ."])
    assert measured["bleu_lower_case"] == pytest.approx(100)
    exact = (5 / 7 * 3 / 6 * 2 / 5 * 1 / 4) ** 0.25  # of 1 to 4 words in a row
    assert measured["bleu"] == pytest.approx(100 * exact)
    assert "tok:13a" in signature
    measured, _ = _MEASURES["summarize"]()(["A tool for files"], ["a small tool"])
    assert measured["rouge1"] == pytest.approx(100 * 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert measured["rouge2"] == 0


def test_measures_of_labels():
    """Worked out by hand, with all texts in one bin, and with one of them in another."""
    sure, right = [0.8, 0.9, 0.85, 0.6], [True, True, False, True]
    assert calibration_error(sure, right, bins=2) == pytest.approx(abs(sum(sure) - 3) / 4)
    apart = (abs(0.8 + 0.9 + 0.85 - 2) + abs(0.6 - 1)) / 4
    assert calibration_error(sure, right, bins=4) == pytest.approx(apart)


def test_the_command_writes_a_line_for_each(path, tmp_path, capsys, monkeypatch):
    pairs = pairs_of(path, 2)
    data = tmp_path / "pairs.tsv"
    data.write_text("".join(f"{text}\t{source}\n" for source, text in pairs))
    command = ["evaluate", str(data), "--task", "answer", "--columns", "2", "1", "--model", path, "--max-tokens", "12"]
    assert main([*command, "-o", str(tmp_path / "texts.txt")]) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert "on 3 pairs" in out
    assert len((tmp_path / "texts.txt").read_text().splitlines()) == 3
    assert main(["translate", "--model", path, "--max-tokens", "5", *SOURCES]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    blank = io.StringIO("\n \n")
    monkeypatch.setattr("sys.stdin", blank)
    assert main(["translate", "--model", path]) == 0
    assert capsys.readouterr().out == "\n\n"
    assert main(["translate", "--model", "stories", "a"]) == 1
    assert "fastlm generate" in capsys.readouterr().err
