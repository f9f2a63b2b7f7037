# SPDX-License-Identifier: Apache-2.0
"""What a training run reads and decides: texts, windows, evaluation, options, schedule, checkpoints."""

import gzip
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from fastlm.tokenizer import ByteTokenizer, CharTokenizer, train_words
from fastlm.training import build_model, checkpoint
from fastlm.training.corpus import Corpus, TrainingWindows, encode, hold_out, read_documents
from fastlm.training.evaluation import Evaluator
from fastlm.training.network import Network
from fastlm.training.options import resolve
from fastlm.training.schedule import Schedule


def test_documents_are_read_from_plain_and_gzip_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nlines\n", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("drei ä\n".encode()))
    files = [tmp_path / "a.txt", tmp_path / "b.txt.gz"]
    assert read_documents(files, "blank-line") == ["one", "two\nlines", "drei ä"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text found"),
        (b"\n\n", "no text found"),
        (b"abc\xff", "expected UTF-8 text, found byte 0xff at offset 3"),
        (gzip.compress(b"abc" * 1000, mtime=0)[:20], "the gzip file is damaged"),
        (gzip.compress(b"abc" * 1000, mtime=0)[:-12] + b"\0" * 12, "the gzip file is damaged"),
    ],
)
def test_unusable_text_is_refused_with_its_name(tmp_path, content, message):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as e:
        read_documents(path, "blank-line")
    assert "corpus.txt" in str(e.value)


def test_hold_out_takes_the_last_documents():
    train, valid = hold_out([f"document {n:03d}" for n in range(100)])
    assert (len(train), len(valid)) == (95, 5)
    assert valid[0] == "document 095"


def test_hold_out_cuts_a_single_document_at_a_line_end():
    text = "".join(f"line {n}\n" for n in range(1000))
    (train,), (valid,) = hold_out([text])
    assert train + valid == text
    assert train.endswith("\n")
    assert 0.05 <= len(valid) / len(text) < 0.06
    assert hold_out(["abcdefghij"]) == (["abcdefghi"], ["j"])


def test_encode_lays_documents_between_borders_and_counts_characters():
    corpus = encode(["ab", "c"], ByteTokenizer("blank-line"))
    assert corpus.ids.tolist() == [256, 97, 98, 256, 99, 256]
    assert (corpus.tokens, corpus.characters, corpus.document_tokens) == (5, 3 + 2 * 2, 2.5)
    assert encode(["ab", "c"], train_words(["ab", "c"], 10)).characters == 3 + 2  # one line end a line


def windows_of(documents, batch=2, steps=5, seed=0, **options):
    tokenizer = ByteTokenizer("blank-line")
    return TrainingWindows(encode(documents, tokenizer), tokenizer.bos, batch, steps, seed, **options)


def numpy_windows(windows, first, count):
    return [tuple(np.asarray(a) for a in w) for w in itertools.islice(windows.from_step(first), count)]


def test_windows_are_a_function_of_the_step():
    windows = windows_of(["some text that goes on and on, " * 20], fresh=0.5)
    whole = numpy_windows(windows, 0, 3 * windows.per_epoch)
    for first in (1, windows.per_epoch - 1, windows.per_epoch + 2):
        for one, other in zip(whole[first:], numpy_windows(windows, first, len(whole) - first), strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_windows_follow_each_other_and_cover_the_corpus():
    text = bytes(range(32, 127)).decode()
    windows = windows_of([text], fresh=0.0)
    for epoch in range(3):
        got = numpy_windows(windows, epoch * windows.per_epoch, windows.per_epoch)
        targets = np.concatenate([w[1] for w in got])
        streams = ["".join(map(chr, stream)) for stream in targets.T]
        assert all(stream in text for stream in streams)
        assert sum(map(len, streams)) > len(text) - 3 * 2 * 5
        for _, targets, keep in got[1:]:
            assert keep.all()
            assert targets.shape == (5, 2)
        assert not got[0][2][0].any(), "an epoch begins afresh"


def test_fresh_starts_happen_at_borders_and_as_often_as_asked():
    windows = windows_of(["x" * 19] * 400, steps=10, fresh=0.1)
    got = numpy_windows(windows, 1, windows.per_epoch - 1)
    inputs, keep = (np.concatenate([w[n] for w in got]) for n in (0, 2))
    fresh = keep[:, :, 0] == 0
    assert (inputs[fresh] == 256).all()
    assert 0.05 < fresh.sum() / (2 * len(got)) < 0.15


def test_a_single_document_starts_afresh_from_a_border_too():
    windows = windows_of(["x" * 8000], steps=10, fresh=0.1)
    got = numpy_windows(windows, 1, windows.per_epoch - 1)
    keep = np.stack([w[2] for w in got])[..., 0]
    assert keep[:, 1:].all()
    assert 0.05 < 1 - keep[:, 0].mean() < 0.15
    for inputs, _, keep in got:
        np.testing.assert_array_equal(inputs == 256, keep[:, :, 0] == 0)


def test_a_short_corpus_is_refused_with_the_size_it_needs():
    with pytest.raises(ValueError, match=r"too short: 11 tokens, but batch_size=2 .* need 15"):
        windows_of(["0123456789"])


def test_evaluation_is_the_keras_model_read_as_one_stream():
    tokenizer = CharTokenizer.train(["abc "])
    corpus = encode(["abc cab abc", "cab"], tokenizer)
    model = build_model(tokenizer.vocab_size, [8], 8, seed=3)
    got = Evaluator(Network(model), corpus, steps=4)()
    logits = np.asarray(model(corpus.ids[None, :-1]), np.float64)[0]
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    nats = -logprobs[np.arange(corpus.tokens), corpus.ids[1:]].sum()
    assert got.nats == pytest.approx(nats, rel=1e-5)
    assert got.perplexity == pytest.approx(math.exp(nats / 16), rel=1e-5)  # 14 characters and two borders
    assert got.bits_per_char == pytest.approx(nats / math.log(2) / 14, rel=1e-5)


def test_evaluation_hardly_depends_on_how_the_stream_is_cut():
    tokenizer = CharTokenizer.train(["abcdefgh "])
    letters = np.random.default_rng(0).choice(list("abcdefgh "), 3000)
    corpus = encode(["".join(letters)], tokenizer)
    model = build_model(tokenizer.vocab_size, [16], 8, seed=3)
    model.layers[1].set_weights([20 * w for w in model.layers[1].get_weights()])  # or the past would hardly matter
    network = Network(model)
    one, many = (Evaluator(network, corpus, steps=50, streams=s)() for s in (1, 7))
    cold = Evaluator(network, corpus, steps=50, streams=7, warm_up=1)()
    assert one.tokens == many.tokens == 3001
    assert many.nats == pytest.approx(one.nats, rel=1e-6)
    assert cold.nats != pytest.approx(one.nats, rel=1e-6), "what was before matters"


def test_presets_fill_what_is_left_open():
    assert resolve("char").epochs == 20
    assert resolve("char", time_limit=5).epochs is None
    assert resolve("bpe").tied
    assert not resolve("bpe", embedding=64).tied
    assert resolve("bpe", units=[100, 90]).embedding == 90
    assert resolve("word", layers=1).units == (650,)
    assert resolve("char", layers=3, units=10).units == (10, 10, 10)
    assert resolve("char", units=10).units == (10, 10)
    assert resolve("word").documents == "line"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "byte"}, ValueError, "preset='byte': expected one of char, bpe, word"),
        ({"documents": "page"}, ValueError, "documents='page'"),
        ({"vocab_size": 100}, ValueError, "characters of the corpus"),
        ({"units": []}, ValueError, "one size a layer"),
        ({"units": [10], "layers": 2}, ValueError, "leave layers out"),
        ({"units": "big"}, TypeError, "units: expected a whole number"),
        ({"units": 0}, ValueError, "units=0"),
        ({"layers": 0}, ValueError, "layers=0"),
        ({"tied": True, "embedding": 8, "units": 16}, ValueError, "embedding=8 and units=16"),
        ({"tied": "yes"}, TypeError, "tied: expected True or False"),
        ({"dropout": 1.0}, ValueError, "dropout=1.0"),
        ({"dropout": "a"}, TypeError, "dropout: expected a number"),
        ({"learning_rate": 0}, ValueError, "learning_rate"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate"),
        ({"batch_size": 1.5}, TypeError, "batch_size: expected a whole number, found 1.5"),
        ({"sequence_length": 0}, ValueError, "sequence_length=0"),
        ({"epochs": True}, TypeError, "epochs"),
        ({"time_limit": -1}, ValueError, "time_limit"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_options_that_make_no_sense_are_named(options, error, message):
    with pytest.raises(error, match=message):
        resolve(**{"preset": "char", **options})


def test_the_rate_warms_up_holds_and_anneals():
    schedule = Schedule(1.0)
    assert schedule.rate(0, 0.0) < 0.01
    assert schedule.rate(1000, 0.3) == schedule.rate(1000, 0.5) == 1.0
    assert schedule.rate(1000, 0.75) == pytest.approx(0.5)
    assert schedule.rate(1000, 1.0) == pytest.approx(0.01)
    assert schedule.rate(10, 0.3) == 1.0, "a short run is not all warm-up"


def test_plateaus_halve_the_rate_and_end_the_run():
    schedule = Schedule(1.0)
    assert schedule.observe(5.0, 0.1)
    assert schedule.observe(4.0, 0.1)
    assert not any(schedule.observe(4.0, 0.2) for _ in range(Schedule.PATIENCE))
    assert schedule.factor == 0.5
    assert schedule.observe(3.0, 0.3)
    for _ in range(Schedule.STOP):
        assert not schedule.exhausted
        schedule.observe(3.5, 0.6)
    assert schedule.exhausted
    assert schedule.factor == 0.5, "while the rate anneals, plateaus do not halve it too"
    assert schedule.best == 3.0


def test_a_checkpoint_comes_back_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, {"step": 3}, {"weights": [np.arange(6).reshape(2, 3), np.float32([1])]})
    meta, groups = checkpoint.load(path)
    assert meta["step"] == 3
    np.testing.assert_array_equal(groups["weights"][0], [[0, 1, 2], [3, 4, 5]])
    assert list(tmp_path.iterdir()) == [path]
    for damaged in (b"", b"hello", path.read_bytes()[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a fastlm checkpoint"):
            checkpoint.load(path)


def test_pieces_that_are_evaluated_begin_as_training_does():
    """A network has only learnt to go on from the zero state behind a border: from the middle of a word some never find
    back, and all of a piece is lost."""
    read = []

    class Recorder:
        def zero_state(self, streams):
            return []

        def __call__(self, inputs, keep, state):
            read.append(inputs.numpy())
            return tf.zeros([inputs.shape[0] * inputs.shape[1], 20]), []

    ids = np.arange(1, 2001, dtype=np.int32) % 19 + 1
    ids[0] = 0
    evaluator = Evaluator(Recorder(), Corpus(ids, 0, 100.0, ""), steps=64, streams=4, warm_up=100)
    for window in (0, 1):
        evaluator._window(tf.constant(ids), tf.constant(window), [])
    piece = evaluator._geometry[3]
    assert (read[0][0] == 0).all()
    assert (read[0][1:, 1] == ids[piece - 99 : piece - 36]).all()
    assert (read[1][:, 1] == ids[piece - 36 : piece + 28]).all()
