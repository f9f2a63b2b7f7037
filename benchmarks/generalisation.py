# SPDX-License-Identifier: Apache-2.0
"""Whether `fastlm report` tells what is known beforehand: models made to overfit from good ones, secrets by how often
they were planted, the same model from too generic to too wild.

python benchmarks/generalisation.py overfitting|secrets|temperatures|remedy STORIES [--count N] [--json FILE]

STORIES is a folder with train.txt.gz and valid.txt, books (benchmarks/README.md). ``overfitting`` trains two small
models each on N pieces of the text, one with dropout and until the validation text gets no likelier, the other to
learn its piece by heart; ``secrets`` plants lines with digits 1, 5 and 20 times; ``temperatures`` has the bundled model
write at each; ``remedy`` fits its sampling settings, and times the whole report.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastlm
from fastlm.report import Report, exposure, report
from fastlm.tokenizer import read_text
from goals import publish

Row = dict[str, Any]

PIECE = 60_000
"""Characters of a piece."""

PARTS_OF = 4  # of a run of text, of which one is the piece

TOGETHER = 20  # lines

SMALL: dict[str, Any] = {
    "preset": "bpe",
    "documents": "line",
    "vocab_size": 800,
    "layers": 1,
    "units": 256,
    "sequence_length": 32,
}

BY_HEART: dict[str, Any] = {"dropout": 0.0, "epochs": 16, "learning_rate": 5e-3}

WELL: dict[str, Any] = {"dropout": 0.4, "epochs": 6}

LEVELS = ("good", "some", "bad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("stories", type=Path)
    parser.add_argument("--count", type=int, help="trainings (default: 20 of overfitting, 3 of secrets)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    publish(PARTS[options.part](options), options.json)


def pieces(stories: Path, number: int) -> tuple[list[str], list[str]]:
    """Lines of the training text, of another place for each number: a piece, and more from between its parts, so that
    both are of the same books."""
    text = read_text(stories / "train.txt.gz")
    begin = random.Random(number).randrange(len(text) - PARTS_OF * PIECE)
    lines = text[begin : begin + PARTS_OF * PIECE].split("\n")[1:-1]
    parts = [lines[at : at + TOGETHER] for at in range(0, len(lines), TOGETHER)]
    chosen, others = parts[::PARTS_OF], [part for n, part in enumerate(parts) if n % PARTS_OF]
    return [line for part in chosen for line in part], [line for part in others for line in part]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- what is learnt by heart ---------------------------------------------------------------------------


def overfitting(options: argparse.Namespace) -> Row:
    rows, count = list[Row](), options.count or 20
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"training": number, **_two_models(options.stories, number, Path(folder))})
        say(f"{number + 1} of {count}: {rows[-1]}")
    apart = sum(
        LEVELS.index(row["by heart"]["level"]) > LEVELS.index(row["well"]["level"])
        and row["by heart"]["membership"] > row["well"]["membership"]
        for row in rows
    )
    return {"told apart": apart, "of": count, "trainings": rows}


def _two_models(stories: Path, number: int, folder: Path) -> Row:
    train, early, valid = (folder / f"{name}.txt" for name in ("train", "early", "valid"))
    chosen, others = pieces(stories, number)
    half = len(others) // 4
    for path, lines in ((train, chosen), (early, others[:half]), (valid, others[half:])):
        path.write_text("\n".join(lines), encoding="utf-8")
    found = {}
    for name, held, training in (("well", early, WELL), ("by heart", train, BY_HEART)):
        fastlm.train(train, folder / "m.gguf", valid=held, seed=number, progress=False, **SMALL, **training)
        said = report(fastlm.load(folder / "m.gguf"), valid, train, fitted=False, seed=number)
        assert said.gap is not None
        assert said.copies is not None
        level = {verdict.question: verdict.level for verdict in said.verdicts}
        found[name] = {
            "level": level["Does it overfit?"],
            "membership": round(said.gap.membership.value, 3),
            "gap": round(said.gap.gap.value, 3),
            "copies": level["Does it copy its training text?"],
            "runs": round(said.copies.excess.value, 2),
            "texts": round(said.copies.verbatim.value, 3),
        }
    return found


REPEATED = (1, 5, 20)
EACH = 4  # secrets planted so often


def secrets(options: argparse.Namespace) -> Row:
    rows, count = list[Row](), options.count or 3
    for number in range(count):
        rows.append({"training": number, **_planted(options.stories, number)})
        say(f"{number + 1} of {count}: {rows[-1]}")
    means = {times: float(np.mean([row[times] for row in rows])) for times in REPEATED}
    in_order = sum(row[1] < row[5] < row[20] for row in rows)
    return {"mean exposure, bits": means, "in order": in_order, "of": count, "trainings": rows}


def _planted(stories: Path, number: int) -> Row:
    """Mean exposure by how often secrets of six digits were planted."""
    draw, lines = random.Random(number), pieces(stories, number)[0]
    known = {
        times: [f"The number of the box is {draw.randrange(10**6):06}." for _ in range(EACH)] for times in REPEATED
    }
    for times, planted in known.items():
        for secret in planted:
            for _ in range(times):
                lines.insert(draw.randrange(len(lines)), secret)
    with tempfile.TemporaryDirectory() as name:
        train, model = Path(name) / "train.txt", Path(name) / "m.gguf"
        train.write_text("\n".join(lines), encoding="utf-8")
        fastlm.train(train, model, valid=train, seed=number, progress=False, **SMALL, **BY_HEART)
        lm = fastlm.load(model)
        return {
            times: round(float(np.mean([exposure(lm, secret, number).exposure for secret in planted])), 2)
            for times, planted in known.items()
        }


# ---- generic and wild ----------------------------------------------------------------------------------

TEMPERATURES = (0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.5)


def temperatures(options: argparse.Namespace) -> Row:
    found, model = dict[float, Row](), fastlm.load("stories")
    for t in TEMPERATURES:
        said = report(model, options.stories / "valid.txt", temperature=t, fitted=False)
        found[t] = {"wildness": round(said.wildness, 2), "misfit": round(said.misfit, 2), "answer": _variety(said)}
        say(f"{t}: {found[t]}")
    scores = [row["wildness"] for row in found.values()]
    return {"in order": scores == sorted(scores), "temperatures": found}


def _variety(said: Report) -> str:
    return next(verdict.answer for verdict in said.verdicts if "generic" in verdict.question)


def remedy(options: argparse.Namespace) -> Row:
    began, train = time.perf_counter(), options.stories / "train.txt.gz"
    said = report(fastlm.load("stories"), options.stories / "valid.txt", train, progress=say)
    with tempfile.TemporaryDirectory() as folder:
        said.save(folder)
    assert said.fit is not None
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "nearer": said.fit.nearer,
        "of": len(said.fit.fitted),
        "before": said.fit.before,
        "after": said.fit.after,
        "answers": [f"{verdict.level}: {verdict.answer}" for verdict in said.verdicts],
    }


PARTS: dict[str, Callable[[argparse.Namespace], Row]] = {
    "overfitting": overfitting,
    "secrets": secrets,
    "temperatures": temperatures,
    "remedy": remedy,
}


if __name__ == "__main__":
    main()
