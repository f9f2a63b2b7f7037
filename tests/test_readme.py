# SPDX-License-Identifier: Apache-2.0
"""What the README and the docstrings show must work; the bundled model must be what its card says."""

import doctest
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import fastlm
from fastlm.cli import _parser
from fastlm.tokenizer import train_bpe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_first_two_blocks_are_the_two_commands():
    main, tests = (block.strip() for block in blocks("sh")[:2])
    assert main == 'pip install . tokenizers && fastlm generate "Once upon a time"'
    assert tests == 'pip install ".[test]" && pytest -n auto --dist worksteal'


def test_python_examples_run(capsys):
    exec(compile(blocks("python")[0], "README", "exec"), {})
    assert len(capsys.readouterr().out) > 200
    exec(compile(blocks("python")[1], "README", "exec"), {})


def test_the_page_of_goals_shows_what_is_said(capsys):
    names = {}
    for example in blocks("python", (ROOT / "docs" / "goals.md").read_text()):
        exec(compile(example, "goals.md", "exec"), names)
    said = capsys.readouterr().out
    assert "include 'river' and 'bear': met\n" in said
    assert "raise max to 8 characters" in said
    assert "['-" in said


def test_export_example_runs(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    tokens = train_bpe(["some text"], 300)
    Path("tokenizer.json").write_text(tokens._source)
    layers = keras.layers
    model = keras.Sequential(
        [layers.Embedding(300, 8), layers.LSTM(9, return_sequences=True), layers.Dense(300, activation="softmax")]
    )
    model(keras.ops.zeros((1, 3), "int32"))
    exec(compile(blocks("python")[2], "README", "exec"), {"fastlm": fastlm, "keras_model": model})
    assert fastlm.load("my.gguf").encode("some text") == tokens.encode("some text")


def test_commands_are_understood():
    commands = [line for block in blocks("sh")[2:] for line in block.splitlines() if line.startswith("fastlm")]
    assert len(commands) == 10
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_c_example_runs(tmp_path):
    body = blocks("c")[0]
    source = (
        '#include "fastlm.h"\n#include <stdio.h>\nint main(void) {\n'
        + body
        + 'printf("%zu tokens\\n", n);\nreturn 0;\n}\n'
    )
    (tmp_path / "app.c").write_text(source)
    shutil.copy(ROOT / "fastlm/models/stories.gguf", tmp_path / "my.gguf")
    core = [str(p) for p in (ROOT / "csrc").glob("*.c")]
    subprocess.run(
        ["cc", "-O1", f"-I{ROOT / 'csrc'}", "app.c", *core, "-lm", "-pthread", "-o", "app"], cwd=tmp_path, check=True
    )
    done = subprocess.run(["./app"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+ tokens\n", done.stdout)


@pytest.mark.parametrize("name", ["fastlm", "fastlm.model", "fastlm.options", "fastlm.tokenizer", "fastlm.format"])
def test_docstring_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_samples_are_what_the_bundled_model_writes():
    """Three unedited texts with their seeds: on any machine the command above each writes it."""
    samples = re.findall(r"`(fastlm generate [^`]*--seed \d+[^`]*)`\n\n```text\n(.*?)\n```", README, re.DOTALL)
    assert len(samples) == 3
    for command, shown in samples:
        options = vars(_parser().parse_args(shlex.split(command, comments=True)[1:]))
        assert shown == fastlm.generate(options["prompt"], seed=options["seed"], echo=True).text


def test_bundled_model_is_small_checked_and_licensed():
    path = ROOT / "fastlm/models/stories.gguf"
    assert path.stat().st_size <= 8_000_000
    lm = fastlm.load("stories")
    largest, tolerance = lm.check()
    assert largest <= tolerance
    assert lm.info["license"] == "Apache-2.0"
    assert lm.recommended
    card = (ROOT / "fastlm/models/stories.md").read_text()
    for word in ("License", "perplexity", "bits per character", "fastlm train", "Project Gutenberg"):
        assert word in card, word


def test_bundled_model_writes_english():
    """Most words that it writes are words of its corpus' author's vocabulary: short, common, spelled right."""
    common = """
        the and to a of was he in it that you she had his they said with for but as at on her not all is so up him
        i be were there out then them what would little do one could down we this have no when if went about see
        did very just get into from some or by who like now asked come over been old way
    """
    text = " ".join(c.text for c in fastlm.generate("Once upon a time", n=5, max_tokens=200, seed=0))
    words = re.findall(r"[a-z']+", text.lower())
    assert len(words) > 300
    assert sum(word in common.split() for word in words) / len(words) > 0.4


def test_the_tutorial_of_wishes_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    path = ROOT / "docs" / "tutorials" / "when_wishes_conflict.py"
    monkeypatch.setattr("sys.argv", [str(path), str(tmp_path)])
    runpy.run_path(str(path))
    said = capsys.readouterr().out
    assert "raise max to 11 characters" in said
    assert "include 'honey' and 'river': met" in said
    assert "pull against each other" in said
    assert (tmp_path / "wishes.svg").stat().st_size > 5000


def test_the_tutorial_of_overfitting_runs(tmp_path, capsys, monkeypatch):
    """Its steps, each on little text and for two epochs: `make tutorials` runs it whole, for what it shows."""
    training = pytest.importorskip("fastlm.training")
    pytest.importorskip("matplotlib")
    train, load = training.train, fastlm.load

    class Brief:
        def generate(self, *given, n, **options):
            return load("stories").generate(*given, n=min(n, 26), **options)

    monkeypatch.setattr(training, "train", lambda *given, epochs, **options: train(*given, epochs=2, **options))
    monkeypatch.setattr(fastlm, "load", lambda path: Brief() if path == "stories" else load(path))
    path = ROOT / "docs" / "tutorials" / "is_my_model_overfitting.py"
    monkeypatch.setattr("sys.argv", [str(path), str(tmp_path)])
    runpy.run_path(str(path))
    said = capsys.readouterr().out
    for step in range(1, 6):
        assert re.search(rf"^{step}\. ", said, re.MULTILINE)
    limited = re.search(r"   with max_copied the longest copied run has (\d+) tokens", said)
    assert int(limited.group(1)) <= 8
    assert (tmp_path / "overfitting.svg").stat().st_size > 5000
    for page in ("by-heart", "better", "best"):
        assert (tmp_path / page / "index.html").exists()
