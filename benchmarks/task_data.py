# SPDX-License-Identifier: Apache-2.0
"""The data sets of the application benchmarks as tab-separated pairs, which `fastlm train --task` reads.

python benchmarks/task_data.py DATA OUT    # DATA: the folder that benchmarks/README.md describes
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastlm.tokenizer import read_text

Pair = tuple[str, str]
HELD_OUT = 10
"""Of bAbI's training questions one in so many, the last ones, is for validation: the set has none of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with translation, summarisation, qa and sentiment")
    parser.add_argument("out", type=Path, help="folder to write to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, pairs in _sets(options.data):
        path = options.out / f"{name}.tsv"
        rows = ["\t".join(fields) + "\n" for fields in pairs]
        path.write_text("".join(rows), encoding="utf-8")
        print(f"{path}: {len(rows):,} pairs")
    for name, lines in (("reviews-like", _like_sst2(options.data)), ("free", _free(options.data))):
        path = options.out / f"{name}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB of text")


def _sets(data: Path) -> Iterator[tuple[str, Iterable[tuple[str, ...]]]]:
    for source, target in (("en", "de"), ("de", "en")):
        for part, stem in (("train", "train"), ("valid", "valid"), ("test", "test_2016_flickr")):
            lines = [_lines(data / "translation" / "multi30k" / f"{stem}.{language}") for language in (source, target)]
            yield f"multi30k.{source}-{target}.{part}", zip(*lines, strict=True)
    for part in ("train", "valid", "test"):
        for target in ("de", "fr"):
            yield f"debian.en-{target}.{part}", _columns(data / "translation" / "debian" / f"{part}.en-{target}.tsv")
        yield f"summaries.{part}", _columns(data / "summarisation" / "debian" / f"{part}.tsv")
        yield f"fairytales.{part}", _fairytales(data / "qa" / "fairytaleqa", part)
        yield f"reviews.{part}", _judged(data / "sentiment" / "reviews" / f"{part}.tsv")
    yield "summaries.gaps", _gaps(_columns(data / "summarisation" / "debian" / "train.tsv"))
    for part, stem in (("phrases", "train_phrases"), ("valid", "valid"), ("test", "test")):
        yield f"sst2.{part}", _judged(data / "sentiment" / "sst2" / f"{stem}.tsv")
    yield from _babi(data / "qa" / "babi")


def _lines(path: Path) -> list[str]:
    """Of a file that may be compressed."""
    return read_text(path if path.exists() else Path(f"{path}.gz")).splitlines()


def _columns(path: Path, columns: tuple[int, int] = (0, 1)) -> Iterator[Pair]:
    for line in _lines(path):
        fields = line.split("\t")
        yield fields[columns[0]].strip(), fields[columns[1]].strip()


def _judged(path: Path) -> Iterator[Pair]:
    """Texts, and what is said of them."""
    for label, text in _columns(path):
        yield text, {"0": "negative", "1": "positive"}[label]


# ---- more pairs to learn summaries from ----------------------------------------------------------------


def _gaps(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The first sentence of each description as the text for the others, behind a mark that tells such a source from a
    whole description (gap sentences: Zhang et al. 2020, "PEGASUS")."""
    for description, _ in pairs:
        found = re.match(r"(.{15,}?[.!?]) (?=[A-Z0-9\"(])(.*)$", description)
        if found and 3 <= len(found[1].split()) <= 24 and len(found[2].split()) >= 4:
            yield f"[...] {found[2]}", found[1]


# ---- text to read before learning labels ------------------------------------------------------------------


def _free(data: Path) -> Iterator[str]:
    """Text that anybody may use, as it stands, for a classifier of reviews that ships: stories, tales, Debian's
    descriptions, and the training sentences of the reviews, without their labels."""
    for corpus in ("stories", "tales"):
        yield from filter(None, _lines(data / "lm" / corpus / "train.txt"))
    yield from (text for text, _ in _columns(data / "summarisation" / "debian" / "train.tsv"))
    yield from 5 * [text for text, _ in _judged(data / "sentiment" / "reviews" / "train.tsv")]


def _like_sst2(data: Path) -> Iterator[str]:
    """Sentences and paragraphs in the manner of SST-2, lower case and with white space between words and marks:
    stories, tales, newspaper, captions, and the training sentences of SST-2 itself, without their labels."""
    for corpus in ("stories", "tales"):
        for line in _lines(data / "lm" / corpus / "train.txt"):
            if line.strip():
                yield parted(line)
    yield from (
        line.strip().replace("<unk>", "").replace("  ", " ") for line in _lines(data / "lm" / "ptb" / "ptb.train.txt")
    )
    yield from map(parted, _lines(data / "translation" / "multi30k" / "train.en"))
    sentences = [text for text, _ in _judged(data / "sentiment" / "sst2" / "train_sentences.tsv")]
    yield from 3 * sentences


_MARKS = re.compile(r"--|\.\.\.|[^\w\s']|n't\b|'(?:s|re|ve|ll|d|m)\b|'")


def parted(text: str) -> str:
    return " ".join(_MARKS.sub(lambda mark: f" {mark[0]} ", text.lower()).split())


# ---- questions --------------------------------------------------------------------------------------------


def _babi(folder: Path) -> Iterator[tuple[str, Iterable[Pair]]]:
    """All tasks together for training, each alone for validation and test."""
    for size, name in (("1k", "en"), ("10k", "en-10k")):
        train: list[Pair] = []
        for path in sorted((folder / name).glob("qa*_train.txt*")):
            pairs, task = _stories(path), re.match(r"qa(\d+)_", path.name)
            assert task is not None
            cut = len(pairs) - len(pairs) // HELD_OUT
            train += pairs[:cut]
            yield f"babi-{size}.valid-{int(task[1]):02}", pairs[cut:]
            [test] = (folder / "en").glob(f"qa{task[1]}_*_test.txt*")  # the same for both sizes
            yield f"babi-{size}.test-{int(task[1]):02}", _stories(test)
        yield f"babi-{size}.train", train


def _stories(path: Path) -> list[Pair]:
    """The question, all that was told before it, and the question again, so that an encoder knows in both directions
    what to look for; an answer that is a list as words."""
    found: list[Pair] = []
    story: list[str] = []
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            number, _, rest = line.rstrip("\n").partition(" ")
            if number == "1":
                story = []
            question, *answer = rest.split("\t")
            if answer:
                found.append(
                    (" ".join([question.strip(), *story, question.strip()]), answer[0].strip().replace(",", " "))
                )
            else:
                story.append(question.strip())
    return found


def _fairytales(folder: Path, part: str) -> Iterator[tuple[str, str, str]]:
    """The question, the sections that it is about, and the question again; the answer; that of a second person, if
    there is one."""
    rows = (line.split("\t") for line in _lines(folder / "sections.tsv"))
    sections = {(story, number): text for _, story, number, text, *_ in rows}
    for line in _lines(folder / f"{part}.tsv"):
        story, numbers, question, answer, second, *_ = line.split("\t")
        told = [sections[story, number.strip()] for number in numbers.split(",")]
        yield " ".join([question, *told, question]), answer, second


if __name__ == "__main__":
    main()
