# SPDX-License-Identifier: Apache-2.0
"""Training of classifiers: the network against float64, calibration, and a model that learns to tell texts apart."""

import io
import json
import math
import random

import numpy as np
import pytest

import fastlm
from fastlm.cli import main
from fastlm.tokenizer import CharTokenizer

tf = pytest.importorskip("tensorflow")

from fastlm.training import train, train_pairs  # noqa: E402
from fastlm.training.classifier import ClassifierNetwork, ClassifyingTask, calibrated_nats, temperature_of  # noqa: E402
from fastlm.training.options import resolve_pairs  # noqa: E402
from fastlm.training.run import _hold_out_pairs  # noqa: E402
from fastlm.weights import POOLINGS  # noqa: E402
from reference import classifier_logits  # noqa: E402

GOOD, BAD = ("fine", "great", "lovely", "warm"), ("dull", "poor", "awful", "cold")
PLAIN = ("a", "the", "film", "story", "and", "it", "is", "was")


def reviews(count, seed=0):
    """Lines of text and label: the label is that of most of the words that judge."""
    r, lines = random.Random(seed), []
    for _ in range(count):
        words = r.choices(PLAIN, k=r.randint(3, 12)) + r.choices((*GOOD, *BAD), k=3)
        r.shuffle(words)
        good = sum(word in GOOD for word in words) >= 2
        lines.append(f"{' '.join(words)}\t{'good' if good else 'bad'}\n")
    return lines


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    (folder / "train.tsv").write_text("".join(reviews(1500)))
    (folder / "valid.tsv").write_text("".join(reviews(200, seed=1)))
    return folder


SMALL = {"vocab_size": 300, "embedding": 24, "units": 24, "attention_units": 16, "dropout": 0.1, "progress": False}


@pytest.fixture(scope="module")
def trained(data):
    """Trained with a stop in the middle."""
    options = {"task": "classify", "valid": data / "valid.tsv", "label_smoothing": 0.05, "learning_rate": 5e-3, **SMALL}
    steps = []

    def stop(progress):
        steps.append(progress)
        if len(steps) == 70:  # behind the first evaluation, at which a run is stored
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_pairs(data / "train.tsv", data / "m.gguf", **{**options, "progress": stop})
    stopped = len(steps)
    options["progress"] = steps.append
    report = train_pairs(data / "train.tsv", data / "m.gguf", **options, resume=True)
    assert steps[stopped].step <= steps[stopped - 1].step + 1  # it went on, and did not begin again
    assert steps[stopped].step > 1
    return data / "m.gguf", report, steps


# ---- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("both", [False, True])
def test_padded_batches_compute_what_each_text_alone_does(pooling, both):
    given = {"embedding": 6, "units": (5, 4), "bidirectional": both, "pooling": pooling}
    options = resolve_pairs("classify", {**given, **({"attention_units": 7} if pooling == "attention" else {})})
    network, r = ClassifierNetwork(options, 11, 3), np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(r.uniform(-0.7, 0.7, variable.shape).astype(np.float32))
    lengths, texts = np.array([7, 1, 4], np.int32), r.integers(0, 11, (8, 3)).astype(np.int32)
    logits = np.array(network(tf.constant(texts), tf.constant(lengths)))
    for j, length in enumerate(lengths):
        expected = classifier_logits(network.weights.arrays(), pooling, texts[8 - length :, j])
        assert np.abs(logits[j] - expected).max() < 1e-5


def test_temperature_makes_probabilities_true():
    r = np.random.default_rng(0)
    logits = r.normal(0, 2, (4000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([r.choice(3, p=row) for row in shares])
    assert temperature_of(3 * logits, labels) == pytest.approx(3, rel=0.05)
    best = temperature_of(logits / 2, labels)
    assert best == pytest.approx(0.5, rel=0.05)
    assert calibrated_nats(logits / 2, labels, best) < min(
        calibrated_nats(logits / 2, labels, best * factor) for factor in (0.9, 1.1)
    )
    certain = temperature_of(np.array([[5.0, 0.0], [0.0, 5.0]]), np.array([0, 1]))
    assert math.isfinite(certain)


# ---- a model ---------------------------------------------------------------------------------------------


def test_it_learns_and_says_how_well(trained, data):
    path, report, steps = trained
    assert report.valid.accuracy > 0.95
    assert "texts/s" in str(steps[-1])
    assert "perplexity" not in str(steps[-1])
    assert "accuracy" in str(steps[-1])
    assert "valid: accuracy 9" in str(report) or "valid: accuracy 100" in str(report)
    assert "texts a second" in str(report)
    assert not path.with_name("m.gguf.ckpt").exists()
    judge = fastlm.load(path)
    assert judge.labels == ("bad", "good")
    lines = [line.rstrip("\n").split("\t") for line in reviews(200, seed=1)]
    right = [
        found.label == label for found, (_, label) in zip(judge.classify([t for t, _ in lines]), lines, strict=True)
    ]
    assert np.mean(right) == pytest.approx(report.valid.accuracy)


def test_the_temperature_is_in_what_is_written(tmp_path):
    """Logits that are three times too large, of texts of a token each, come out true."""
    options = resolve_pairs("classify", {"embedding": 8, "units": 8, "pooling": "mean", "bidirectional": False})
    tokenizer = CharTokenizer.train(["ab"], "line")
    r, texts = np.random.default_rng(0), ["a", "b"] * 500
    task = ClassifyingTask(
        options, tokenizer, ["x", "y"], [("a", "x"), ("b", "y")], list(zip(texts, "xy" * 500, strict=True))
    )
    ids = [tokenizer.encode(text) for text in "ab"]
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    rows = np.concatenate(
        [task.network(np.array([[*begin, *one]], np.int32).T, np.array([len(begin) + 1], np.int32)) for one in ids]
    ).astype(np.float64)
    shares = 1 / (1 + np.exp((rows[:, 0] - rows[:, 1]) * 0.5))  # of the second label: as if half as sure
    labels = ["xy"[int(r.random() < shares["ab".index(text)])] for text in texts]
    task = ClassifyingTask(
        options, tokenizer, ["x", "y"], [("a", "x"), ("b", "y")], list(zip(texts, labels, strict=True))
    )
    task.export(tmp_path / "m.gguf", {})
    temperature = temperature_of(*task._judge(task._held))
    assert abs(temperature - 1) > 0.2
    judge = fastlm.load(tmp_path / "m.gguf")
    for text, row in zip("ab", rows, strict=True):
        expected = np.exp(row / temperature) / np.exp(row / temperature).sum()
        assert list(judge.classify(text).values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_words_that_decide_are_found(trained):
    judge = fastlm.load(trained[0])
    words = judge.classify("the story is great and the film was dull and lovely", explain=True).words
    ordered = [word.word for word in sorted(words, key=lambda word: -word.effect)]
    assert set(ordered[:2]) == {"great", "lovely"}
    assert ordered[-1] == "dull"


def test_a_language_model_is_taken_over(data, tmp_path):
    (tmp_path / "text.txt").write_text("".join(line.split("\t")[0] + "\n" for line in reviews(300)))
    train(tmp_path / "text.txt", tmp_path / "lm.gguf", preset="bpe", vocab_size=300, units=[24, 16], embedding=16,
          documents="line", epochs=1, progress=False)  # fmt: skip
    begun = {"task": "classify", "pretrained": tmp_path / "lm.gguf", "epochs": 1, "progress": False}
    weights = fastlm.format.unpack(tmp_path / "lm.gguf").to_dict()
    train_pairs(data / "train.tsv", tmp_path / "m.gguf", **begun, learning_rate=1e-9, pooling="concat", dropout=0.5)
    found = fastlm.format.unpack(tmp_path / "m.gguf").to_dict()
    for name in ("embedding", "lstm.0.kernel", "lstm.1.kernel", "lstm.1.recurrent_kernel"):
        assert np.abs(found[name][: len(weights[name])] - weights[name]).max() < 1e-4
    assert (
        np.abs(found["lstm.1.kernel"][24:]).max() < 1e-4
    )  # what the other direction gives counts for nothing at first
    assert found["lstm.0.reverse.kernel"].shape == found["lstm.0.kernel"].shape
    train(
        tmp_path / "text.txt", tmp_path / "chars.gguf", preset="char", units=[12], embedding=8, epochs=1, progress=False
    )
    train_pairs(data / "train.tsv", tmp_path / "c.gguf", **{**begun, "pretrained": tmp_path / "chars.gguf"})
    assert fastlm.load(tmp_path / "c.gguf").tokenizer.kind == "chars"
    for options, match in (
        ({"units": 20}, "units: that of the pretrained model"),
        ({"pretrained": tmp_path / "m.gguf"}, "expected a language model"),
        ({"task": "translate"}, "pretrained: for task='classify'"),
    ):
        with pytest.raises(ValueError, match=match):
            train_pairs(data / "train.tsv", tmp_path / "x.gguf", **{**begun, **options})
    assert not (tmp_path / "x.gguf").exists()


def test_what_is_wrong_is_said(data, tmp_path):
    def wrong(match, train_lines, valid_lines=(), error=ValueError, **options):
        (tmp_path / "t.tsv").write_text("".join(train_lines))
        (tmp_path / "v.tsv").write_text("".join(valid_lines))
        valid = {"valid": tmp_path / "v.tsv"} if valid_lines else {}
        with pytest.raises(error, match=match):
            train_pairs(tmp_path / "t.tsv", tmp_path / "x.gguf", task="classify", progress=False, **valid, **options)
        assert not (tmp_path / "x.gguf").exists()

    lines = reviews(50)
    wrong(r"t\.tsv, line 2: expected at least 2 columns", ["a b\tgood\n", "c d\n"])
    wrong("every text has the label 'good'", ["a\tgood\n"] * 40)
    wrong("validation text 2 has the label 'fair', which no training text has: expected bad, good", lines,
          ["a\tgood\n", "b\tfair\n"])  # fmt: skip
    wrong("pooling='sum': expected last, mean", lines, pooling="sum")
    wrong("attention_units: pooling='max' has none", lines, pooling="max", attention_units=8)
    wrong(r"50 texts have 50 labels, .*if labels come before texts, say columns=\(1, 0\)", lines, columns=(1, 0))
    wrong("attention: no option of task='classify'", lines, attention="dot", error=TypeError)


def test_the_commands(trained, data, capsys, monkeypatch):
    path = str(trained[0])
    monkeypatch.setattr("sys.stdin", io.StringIO("a great and lovely film\n\n"))
    assert main(["classify", "--model", path]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("good\t0.")
    assert second == ""
    assert main(["classify", "--model", path, "--explain", "a great and lovely film, it is warm"]) == 0
    assert " lovely(+" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("a dull and awful film\n \n"))
    assert main(["classify", "--model", path, "--json"]) == 0
    one, none = map(json.loads, capsys.readouterr().out.splitlines())
    assert one["label"] == "bad"
    assert sum(one["probabilities"].values()) == pytest.approx(1)
    assert none["label"] is None
    assert main(["evaluate", "--model", path, "--task", "classify", str(data / "valid.tsv")]) == 0
    assert "accuracy 9" in (out := capsys.readouterr().out) or "accuracy 100" in out
    assert "calibration_error" in out
    assert main(["classify", "--model", "stories", "a film"]) == 1
    assert "this model writes on from a text: fastlm generate --model stories" in capsys.readouterr().err
    (data / "lines.txt").write_text("a film\n")
    assert main(["score", "--per-line", "--model", path, str(data / "lines.txt")]) == 1
    assert (
        "only a language model scores texts alone, and this is a model of task 'classifier'" in capsys.readouterr().err
    )
    assert main(["translate", "--model", path, "a film"]) == 1
    assert f"this model gives labels: fastlm classify --model {path}" in capsys.readouterr().err
    (data / "other.tsv").write_text("a film\tfair\n")
    assert main(["evaluate", "--model", path, "--task", "classify", str(data / "other.tsv")]) == 1
    assert "pair 1 has the label 'fair', which the model has not: bad, good" in capsys.readouterr().err
    assert main(["evaluate", "--model", path, "--task", "classify", "--beams", "2", str(data / "valid.tsv")]) == 1
    assert "num_beams" in capsys.readouterr().err
    assert main(["train", str(data / "train.tsv"), "-o", "x.gguf", "--pooling", "mean"]) == 1
    assert "--pooling is for training on pairs" in capsys.readouterr().err


def test_texts_are_read_in_training_as_the_engine_reads_them(trained):
    judge = fastlm.load(trained[0])
    texts = [("a great film", "good"), ("it is dull", "bad")]
    task = ClassifyingTask(
        resolve_pairs("classify", {"embedding": 8, "units": 8}), judge.tokenizer, judge.labels, texts, texts
    )
    sources, lengths, _, targets = next(iter(task.from_step(0)))
    found = {
        tuple(row[len(row) - n :].tolist()): label for row, n, label in zip(sources.T, lengths, targets[0], strict=True)
    }
    assert found == {tuple(judge._ids(text)): judge.labels.index(label) for text, label in texts}


def test_labels_that_lie_sorted_are_all_held_out(tmp_path):
    lines = sorted(reviews(400), key=lambda line: line.split("\t")[1])
    (tmp_path / "t.tsv").write_text("".join(lines))
    pairs = [tuple(line.rstrip("\n").split("\t")) for line in lines]
    kept, held = _hold_out_pairs(pairs, resolve_pairs("classify", {}))
    assert sorted(kept + held) == sorted(pairs)
    for label in ("good", "bad"):
        of_label = [pair for pair in pairs if pair[1] == label]
        assert sum(one == label for _, one in held) == len(of_label) // 20


def test_a_run_of_another_kind_is_not_resumed(data, tmp_path):
    def stop(_):
        raise InterruptedError

    given = {"resume": True, "progress": False}
    path = tmp_path / "m.gguf"
    with pytest.raises(InterruptedError):
        train_pairs(data / "train.tsv", path, task="classify", **{**SMALL, "progress": stop})
    with pytest.raises(ValueError, match="the run in the checkpoint is of task 'classify': give"):
        train_pairs(data / "train.tsv", path, task="translate", **given)
    with pytest.raises(ValueError, match="pretrained: the run in the checkpoint has begun"):
        train_pairs(data / "train.tsv", path, task="classify", pretrained="stories", **given)
    with pytest.raises(ValueError, match="the run in the checkpoint is of task 'classify': give"):
        train(data / "train.tsv", path, **given)
    swapped = (data / "train.tsv").read_text().replace("\tgood", "\tfair")
    (tmp_path / "t.tsv").write_text(swapped)
    with pytest.raises(ValueError, match="the labels were bad, good, now bad, fair"):
        train_pairs(tmp_path / "t.tsv", path, task="classify", **given)


def test_a_run_with_pooling_without_attention_goes_on(data, tmp_path):
    """Its checkpoint says how many units attention would have had."""
    path, given = tmp_path / "m.gguf", {"task": "classify", **SMALL, "pooling": "max"}
    del given["attention_units"]

    def stop(_):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_pairs(data / "train.tsv", path, **{**given, "progress": stop})
    assert train_pairs(data / "train.tsv", path, **given, epochs=1, resume=True).steps > 1
