# SPDX-License-Identifier: Apache-2.0
"""The models that a checkout has: small, sound, described, and what examples use."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastlm

ROOT = Path(__file__).parent.parent
MODELS = sorted((ROOT / "models").glob("*.gguf"))
STORY = "John went to the kitchen.\nJohn took the milk.\nJohn went to the garden.\nWhere is the milk?\n"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_models_are_sound_and_described(path):
    model = fastlm.load(path)
    error, tolerance = model.check()
    assert error <= tolerance
    assert path.stat().st_size <= 10_000_000
    card = (ROOT / "models" / "README.md").read_text("utf-8")
    assert any(path.name in line for line in card.splitlines() if line.startswith("## "))
    assert model.info["license"].replace("-", " ") in card.replace("-", " ")
    assert model.info["description"]


def test_questions_are_answered():
    model = fastlm.load(ROOT / "models" / "babi.gguf")
    question = "Where is the milk?"
    story = " ".join(STORY.splitlines()[:-1])
    assert str(model.generate(f"{question} {story} {question}")) == "garden"


DESCRIPTIONS = {
    "debian-en-fr.gguf": ("This package contains the documentation for libfoo 2.0.", "libfoo 2.0", "documentation"),
    "debian-en-de.gguf": ("This package contains the documentation for libfoo 2.0.", "libfoo 2.0", "Dieses Paket"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_are_translated(name):
    source, kept, said = DESCRIPTIONS[name]
    model = fastlm.load(ROOT / "models" / name)
    text = str(model.generate(source, num_beams=10, keep_names=True))
    assert kept in text
    assert said in text
    assert model.check()


def test_the_example_uses_it():
    command = [sys.executable, str(ROOT / "examples" / "answer.py")]
    found = subprocess.run(command, input=STORY, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("Where is the milk? garden (")


EXAMPLES = {
    "translate.py": ("", "Bibliothek Python|bibliothèque Python"),
    "summarize.py": ("frotz is a Python module that reads and writes PNG images quickly.", "PNG"),
    "sentiment.py": ("", "positive|negative"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_with_the_models_of_the_checkout(name):
    given, said = EXAMPLES[name]
    command = [sys.executable, str(ROOT / "examples" / name)]
    found = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    assert re.search(said, found.stdout), found.stdout
