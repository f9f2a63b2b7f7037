# SPDX-License-Identifier: Apache-2.0
"""`fastlm.train` from text files to a model file, and everything that may interrupt it."""

import io
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastlm
from fastlm.cli import main
from fastlm.goals import Experts, Length, Like
from fastlm.report import read_curve
from fastlm.tokenizer import from_fields
from fastlm.training import GapCurve, Progress, evaluate, load_checkpoint, train_pairs

TINY = {"units": 16, "layers": 1, "embedding": 8, "sequence_length": 16, "batch_size": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sentences of a small grammar, one paragraph a document."""
    rng = np.random.default_rng(0)
    names, verbs, things = ["Anna", "Ben", "The fox"], ["sees", "likes", "takes"], ["a hat", "the sun", "an old boat"]

    def sentence():
        return f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(things)}."

    documents = ["\n".join(sentence() for _ in range(rng.integers(2, 6))) for _ in range(200)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def train(corpus, output, **options):
    return fastlm.train(corpus, output, **{**TINY, "documents": "blank-line", "progress": False, **options})


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """The report of a run of four epochs, and its checkpoint."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    checkpoint = directory / "run.ckpt"
    return train(corpus, directory / "m.gguf", epochs=4, checkpoint=checkpoint), checkpoint


def test_a_trained_model_is_written_and_says_how_good_it_is(corpus, tmp_path):
    output = tmp_path / "m.gguf"
    report = train(corpus, output, epochs=8, name="foxes", license="CC0-1.0")
    assert report.valid_bits_per_char < 1.5, "27 equally likely sentences are 0.26 bits a character"
    assert report.epochs == pytest.approx(8)
    assert report.tokens == report.steps * 16 * 8
    assert report.tokens_per_second == pytest.approx(report.tokens / report.seconds)
    assert sorted(tmp_path.iterdir()) == [output], "the checkpoint goes when the model is there"
    lm = fastlm.load(output)
    assert lm.info["name"] == "foxes"
    assert lm.info["license"] == "CC0-1.0"
    assert lm.recommended == {"temperature": 0.7, "top_p": 0.9}
    assert lm.bos == lm.eos == 0


def test_the_engine_and_training_agree_about_perplexity(corpus, uninterrupted):
    report, checkpoint = uninterrupted
    model, tokenizer = load_checkpoint(checkpoint)
    documents = corpus.read_text(encoding="utf-8").strip().split("\n\n")
    held = documents[-(len(documents) // 20) :]
    tokens = [t for d in held for t in [*tokenizer.encode(d), tokenizer.eos]]
    score = fastlm.load(report.output).score(tokens)
    ours = evaluate(model, tokenizer, corpus)
    assert ours.tokens > 10 * len(tokens)
    assert score.perplexity == pytest.approx(report.valid_perplexity, rel=0.02)


def test_a_fresh_model_begins_documents(corpus, tmp_path):
    """The zero state and the border are what generation starts from, and are trained as such."""
    report = train(corpus, tmp_path / "m.gguf", epochs=12)
    starts = [fastlm.load(report.output).generate("", max_tokens=4, seed=n).text for n in range(20)]
    assert sum(s.startswith(("Anna", "Ben", "The ")) for s in starts) >= 17, starts


@pytest.mark.parametrize("preset", ["bpe", "word"])
def test_other_tokenizers_train_too(corpus, tmp_path, preset):
    report = train(
        corpus, tmp_path / "m.gguf", preset=preset, vocab_size=300, epochs=2, tied=preset == "bpe", embedding=16
    )
    lm = fastlm.load(report.output)
    assert 10 < lm.vocab_size <= 300
    assert report.valid_perplexity < lm.vocab_size
    assert lm.generate("Anna", max_tokens=5, seed=1).text


@pytest.mark.parametrize("preset", ["char", "bpe"])
def test_a_language_model_is_gone_on_with(corpus, uninterrupted, tmp_path, preset):
    base = uninterrupted[0].output
    if preset == "bpe":
        base = tmp_path / "base.gguf"
        train(corpus, base, preset="bpe", vocab_size=300, units=8, epochs=1)
    own = {"units": None, "layers": None, "embedding": None}
    path = tmp_path / "m.gguf"
    train(corpus, path, pretrained=base, epochs=1, **{**own, "learning_rate": 1e-9})
    before, after = (fastlm.format.unpack(one).to_dict() for one in (base, path))
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, atol=1e-6, err_msg=name)

    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text(encoding="utf-8").replace("Anna", "Ben"), encoding="utf-8")
    train(other, tmp_path / "tuned.gguf", pretrained=base, epochs=4, **own)
    tuned, known = fastlm.load(tmp_path / "tuned.gguf"), fastlm.load(base)
    assert tuned.tokenizer.documents == "blank-line"
    assert tuned.tokenizer.pieces == known.tokenizer.pieces
    assert tuned.score("Anna likes").logprobs[0] < known.score("Anna likes").logprobs[0] - 0.5
    assert known.generate(
        "", logits_processor=Experts(known, like=tuned, unlike=known), min_tokens=3, max_tokens=9
    ).text
    assert known.generate("", goals=[Like(tuned), Length("tokens", min=3)], max_tokens=9).text


def test_a_tokenizer_is_taken_over(corpus, uninterrupted, tmp_path):
    base = uninterrupted[0].output
    other = tmp_path / "other.txt"
    other.write_text("Zoë saw 7 ships.\n" * 200, encoding="utf-8")
    path = tmp_path / "m.gguf"
    train(other, path, tokenizer=base, documents=None, preset="word", units=12, epochs=1)
    model, known = fastlm.load(path), fastlm.load(base)
    assert model.tokenizer.pieces == known.tokenizer.pieces
    assert model.tokenizer.documents == "line"
    assert known.tokenizer.unknown in model.encode("Zoë")
    assert known.generate("", contrastive_model=model, max_tokens=5).text is not None


def test_what_a_run_cannot_begin_with_is_named(corpus, uninterrupted, tmp_path):
    base = uninterrupted[0].output
    (tmp_path / "pairs.tsv").write_text("a b\tgood\nc d\tbad\n" * 30)
    classifier = tmp_path / "c.gguf"
    train_pairs(tmp_path / "pairs.tsv", classifier, task="classify", epochs=1, units=4, progress=False)
    weights = fastlm.format.unpack(base).to_dict()
    no_tokenizer, two_marks, more_rows = (tmp_path / f"{name}.gguf" for name in ("ids", "marks", "rows"))
    fastlm.export(weights, no_tokenizer)
    marks = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
    known = from_fields({**fastlm.load(base).tokenizer.fields(), **marks})
    fastlm.export(weights, two_marks, tokenizer=known)
    known = fastlm.load(base).tokenizer
    one_more = {"embedding": [(0, 1), (0, 0)], "output.kernel": [(0, 0), (0, 1)], "output.bias": [(0, 1)]}
    rows = {name: np.pad(array, one_more.get(name, [(0, 0)] * array.ndim)) for name, array in weights.items()}
    fastlm.export(rows, more_rows, tokenizer=known)
    own = {"units": None, "layers": None, "embedding": None}
    for options, match in (
        ({"pretrained": base}, "layers: that of the pretrained model is taken; leave it out"),
        ({"pretrained": base, **own, "vocab_size": 300}, "vocab_size: that of the pretrained model"),
        ({"pretrained": base, **own, "tied": True}, "tied: that of the pretrained model"),
        ({"tokenizer": base, "vocab_size": 300}, "vocab_size: that of the tokenizer is taken"),
        ({"tokenizer": base, "pretrained": base}, "tokenizer: that of the pretrained model is taken"),
        ({"pretrained": classifier, **own}, "pretrained: expected a language model with a tokenizer"),
        ({"pretrained": no_tokenizer, **own}, "pretrained: expected a language model with a tokenizer"),
        ({"tokenizer": no_tokenizer}, "tokenizer: expected a model with a tokenizer, found"),
        ({"tokenizer": two_marks}, "begin with token 0 and end with 1"),
        ({"tokenizer": more_rows}, f"its tokenizer has {known.vocab_size} tokens"),
        (
            {"pretrained": more_rows, **own},
            f"its tokenizer has {known.vocab_size} tokens, the model {known.vocab_size + 1}",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            train(corpus, tmp_path / "x.gguf", **options)
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("Аня видит солнце.\n\n" * 200, encoding="utf-8")
    with pytest.raises(ValueError, match=r"7\d % of the corpus is unknown to the tokenizer: expected at most 50 %"):
        train(foreign, tmp_path / "x.gguf", tokenizer=base)
    assert not (tmp_path / "x.gguf").exists()


def test_validation_text_may_be_given_and_corpora_may_be_many(corpus, tmp_path):
    (tmp_path / "valid.txt").write_text("Anna likes the sun.\n\nBen sees a hat.", encoding="utf-8")
    report = train([corpus, corpus], tmp_path / "m.gguf", valid=tmp_path / "valid.txt", epochs=1)
    assert report.valid_perplexity > 1


def test_a_small_validation_file_does_not_end_a_run_early(corpus, tmp_path):
    """What is noisy is not asked so often that nine evaluations of no use come in no time."""
    (tmp_path / "valid.txt").write_text("Anna sees.", encoding="utf-8")
    found = [None]

    def see(progress):
        if progress.valid is not found[-1]:
            found.append(progress.valid)

    report = train(corpus, tmp_path / "m.gguf", valid=tmp_path / "valid.txt", epochs=1, progress=see)
    assert report.epochs == pytest.approx(1)
    assert 10 < len(found) <= 22


def test_the_gap_is_written_down_and_drawn(corpus, tmp_path, capsys):
    """By the command; a run that is continued goes on in its file, another begins it anew."""
    curve, model = tmp_path / "curve.jsonl", str(tmp_path / "m.gguf")
    curve.write_text('{"epoch": 0.01, "train": 9, "valid": 9}\n')
    tiny = ["--units", "16", "--embedding", "8", "--batch-size", "8", "--sequence-length", "16"]
    command = ["train", str(corpus), "-o", model, "--documents", "blank-line", *tiny, "--epochs", "2"]
    assert main([*command, "--curve", str(curve)]) == 0
    assert "gap" in capsys.readouterr().err
    rows = read_curve(curve)
    epochs = [row["epoch"] for row in rows]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == pytest.approx(2, abs=0.1)
    assert rows[0]["train"] > rows[-1]["train"]
    assert rows[0]["train"] < 9
    with open(curve, "a") as file:
        file.write('{"epoch": 2.1, "tra')  # the machine went down
    gap = GapCurve(curve, stream=False)
    gap(Progress(100, 1.0, 1.0, None, 0.1, 1.0, 1.0, 1.0))
    assert read_curve(curve) == [row for row in rows if row["epoch"] < 1]
    with pytest.raises(ValueError, match=r"corpus\.txt: no curve of a training"):
        GapCurve(corpus)


def test_a_time_limit_ends_training(corpus, tmp_path):
    """On any machine: a slow one with other work spends all of the time on building the network for the first step."""
    began = time.monotonic()
    report = train(corpus, tmp_path / "m.gguf", time_limit=3)
    assert 1 < report.seconds < 60
    assert time.monotonic() - began < 120


def test_a_resumed_run_goes_where_it_would_have_gone(corpus, uninterrupted, tmp_path):
    report, _ = uninterrupted
    stopped_at = []

    def interrupt(progress):  # as Ctrl-C does, in the middle of an epoch
        if progress.step == report.steps // 3:
            stopped_at.append(progress.step)
            signal.raise_signal(signal.SIGINT)

    output = tmp_path / "m.gguf"
    with pytest.raises(KeyboardInterrupt, match=r"m\.gguf\.ckpt holds the run; --resume"):
        train(corpus, output, epochs=4, progress=interrupt)
    assert not output.exists()
    steps = []
    resumed = train(corpus, output, epochs=4, resume=True, progress=lambda p: steps.append(p.step))
    assert steps[0] == stopped_at[0] + 1
    assert resumed.steps == report.steps
    assert resumed.valid_perplexity == pytest.approx(report.valid_perplexity, rel=1e-4)
    assert resumed.train_perplexity == pytest.approx(report.train_perplexity, rel=1e-4)


def test_a_killed_run_is_resumed_to_the_same_perplexity(corpus, uninterrupted, tmp_path):
    report, _ = uninterrupted
    output = tmp_path / "m.gguf"
    code = f"""
import fastlm
def progress(p):
    print(p.step, flush=True)
fastlm.train({str(corpus)!r}, {str(output)!r}, documents="blank-line", epochs=4, progress=progress, **{TINY!r})
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/"
    )
    for line in child.stdout:
        if int(line) > report.steps // 2:
            os.kill(child.pid, signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    steps = []
    resumed = train(corpus, output, epochs=4, resume=True, progress=lambda p: steps.append(p.step))
    assert 1 < steps[0] <= report.steps // 2 + 2, "from the last checkpoint, not from the start"
    assert resumed.steps == report.steps
    assert resumed.valid_perplexity == pytest.approx(report.valid_perplexity, rel=0.01)


def test_a_finished_run_can_be_given_more_epochs(corpus, uninterrupted, tmp_path):
    report, checkpoint = uninterrupted
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(checkpoint.read_bytes())
    more = train(corpus, tmp_path / "m.gguf", epochs=5, resume=True, checkpoint=copy)
    assert report.steps < more.steps <= report.steps * 5 / 4
    assert more.valid_perplexity <= report.valid_perplexity
    assert copy.exists(), "a checkpoint that was named stays"


def test_options_left_out_when_resuming_are_the_run_s(corpus, uninterrupted, tmp_path):
    report, checkpoint = uninterrupted
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(checkpoint.read_bytes())
    again = fastlm.train(corpus, tmp_path / "m.gguf", resume=True, checkpoint=copy, learning_rate=1e-4, progress=False)
    assert again.steps == report.steps
    assert again.valid_perplexity == report.valid_perplexity


def test_a_checkpoint_of_another_run_is_refused(corpus, uninterrupted, tmp_path):
    _, checkpoint = uninterrupted
    options = {"epochs": 4, "resume": True, "checkpoint": checkpoint}
    with pytest.raises(ValueError, match=r"dropout was 0\.1, now 0\.3; seed was 0, now 1"):
        train(corpus, tmp_path / "m.gguf", dropout=0.3, seed=1, **options)
    (tmp_path / "other.txt").write_text(corpus.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    with pytest.raises(ValueError, match="the text is another"):
        train(tmp_path / "other.txt", tmp_path / "m.gguf", **options)


def test_a_run_is_never_overwritten(corpus, tmp_path):
    saved = tmp_path / "m.gguf.ckpt"
    saved.write_bytes(b"hours of work")
    with pytest.raises(FileExistsError, match="holds a run: --resume"):
        train(corpus, tmp_path / "m.gguf")
    assert saved.read_bytes() == b"hours of work"
    with pytest.raises(ValueError, match="not a fastlm checkpoint"):
        train(corpus, tmp_path / "m.gguf", resume=True)


def test_wrong_paths_are_named_before_any_work(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        train(tmp_path / "nowhere.txt", tmp_path / "m.gguf")
    with pytest.raises(FileNotFoundError, match="output: there is no directory"):
        train(corpus, tmp_path / "missing" / "m.gguf")
    with pytest.raises(IsADirectoryError, match="output"):
        train(corpus, tmp_path)
    with pytest.raises(IsADirectoryError):
        train(tmp_path, tmp_path / "m.gguf")
    with pytest.raises(FileNotFoundError, match="leave --resume"):
        train(corpus, tmp_path / "m.gguf", resume=True)
    with pytest.raises(ValueError, match="empty list"):
        train([], tmp_path / "m.gguf")
    with pytest.raises(TypeError, match="progress"):
        train(corpus, tmp_path / "m.gguf", progress=3)
    with pytest.raises(ValueError, match="too short"):
        train(corpus, tmp_path / "m.gguf", sequence_length=5000)
    assert not list(tmp_path.iterdir())


def test_divergence_is_an_error_that_says_what_to_try(corpus, tmp_path):
    with pytest.raises(FloatingPointError, match="try a learning_rate smaller than"):
        train(corpus, tmp_path / "m.gguf", epochs=20, learning_rate=1e38)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(corpus, tmp_path, monkeypatch):
    """A full disk: the error is raised, the run before it can be resumed."""

    def full(path):
        raise OSError(28, "No space left on device")

    output, kept = tmp_path / "m.gguf", []

    def fill(progress):
        if progress.valid is not None and not kept:
            kept.append((tmp_path / "m.gguf.ckpt").read_bytes())
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left"):
        train(corpus, output, epochs=4, progress=fill)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf.ckpt"]
    assert (tmp_path / "m.gguf.ckpt").read_bytes() == kept[0]
    monkeypatch.undo()
    assert train(corpus, output, epochs=4, resume=True).epochs == pytest.approx(4)


def test_progress_is_shown_on_the_stream_given(corpus, tmp_path, capsys):
    stream = io.StringIO()
    train(corpus, tmp_path / "m.gguf", epochs=1, progress=stream)
    last = stream.getvalue().splitlines()[-1]
    for part in ("step", "epoch 1.00", "loss", "perplexity", "tokens/s", "learning rate", "left", "bits/char"):
        assert part in last
    assert capsys.readouterr().out == ""


def test_training_works_outside_the_main_thread(corpus, tmp_path):
    reports = []
    thread = threading.Thread(target=lambda: reports.append(train(corpus, tmp_path / "m.gguf", epochs=1)))
    thread.start()
    thread.join()
    assert reports[0].steps > 0


def test_a_kept_best_is_what_is_exported(corpus, tmp_path):
    """Over-fitting: later weights are worse, and the file has the best ones."""
    (tmp_path / "small.txt").write_text(corpus.read_text(encoding="utf-8")[:600], encoding="utf-8")
    seen = []
    report = train(
        tmp_path / "small.txt",
        tmp_path / "m.gguf",
        valid=corpus,
        documents="file",
        epochs=120,
        batch_size=2,
        learning_rate=0.03,
        progress=lambda p: seen.append(p.valid),
    )
    perplexities = [v.perplexity for v in seen if v is not None]
    assert report.valid_perplexity == min(perplexities)
    assert perplexities[-1] > report.valid_perplexity
