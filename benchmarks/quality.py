# SPDX-License-Identifier: Apache-2.0
"""How good the models of the applications are, by the measure of each task, in float32 and in int8.

python benchmarks/quality.py DATA MODELS [--part valid|test] [--only NAME ...] [--json FILE]

DATA is what `task_data.py` wrote; MODELS a folder with models in float32 of the names below, of which those that are
there are measured. Choose by `--part valid`; the test sets are for the figures that are published.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastlm
from fastlm.evaluation import _MEASURES, evaluate
from fastlm.pairs import read_pairs
from fastlm.seq2seq import names_in, stands_in, words_in

Pairs = list[tuple[str, str]]
Measures = Mapping[str, float]
ROUNDING = ("f32", "int8")


@dataclass(frozen=True)
class Set:
    """What a model is measured on: files, a task of `fastlm.evaluation`, and ways to write.

    ``more`` measures what the task's own measure leaves out, of the files, their pairs and the texts.
    """

    task: str
    files: str
    ways: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    more: Callable[[list[Path], Pairs, list[str]], Measures] | None = None


GREEDY_AND_BEAMS = {"greedy": {"temperature": 0}, "beam 5": {"num_beams": 5}}
WITH_NAMES = {**GREEDY_AND_BEAMS, "names": {"num_beams": 10, "keep_names": True}}
SHORTLY = {"no_repeat_ngram_size": 2, "length_penalty": 0.5}
SHORT = {
    **GREEDY_AND_BEAMS,
    "beam 5": {"num_beams": 5, **SHORTLY},
    "mbr 32": {"num_beams": 32, "mbr": True, **SHORTLY},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--part", choices=("valid", "test"), default="valid")
    parser.add_argument("--only", nargs="+", choices=SETS, help="models, by name")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    rows = []
    for name in options.only or SETS:
        path = options.models / f"{name}.gguf"
        if options.only or path.exists():
            for row in measured(name, path, options.data, options.part):
                rows.append(row)
                figures = ", ".join(f"{measure} {value:.2f}" for measure, value in row["measures"].items())
                print(f"{name:18} {row['weights']:5} {row['way']:8} {row['pairs']:6,} pairs  {figures}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(name: str, path: Path, data: Path, part: str) -> Iterator[dict[str, Any]]:
    one = SETS[name]
    files = sorted(data.glob(one.files.format(part=part)))
    if not files:
        raise FileNotFoundError(f"{data}: no {one.files.format(part=part)}, which task_data.py writes")
    with tempfile.TemporaryDirectory() as folder:
        for weights in ROUNDING:
            used = path
            if weights != "f32":
                used = Path(folder) / "rounded.gguf"
                fastlm.quantize(path, used, dtype=weights)
            model = fastlm.load(used)
            for way, options in one.ways.items():
                pairs = read_pairs(files)
                report = evaluate(model, pairs, one.task, **options)
                found = {**report.measures, **(one.more(files, pairs, list(report.texts)) if one.more else {})}
                row = {"name": name, "part": part, "weights": weights, "way": way, "pairs": report.pairs}
                speed = {"texts_per_second": report.pairs / report.seconds, "signature": report.signature}
                yield {**row, "bytes": used.stat().st_size, "measures": found, **speed}


# ---- what the measures of the tasks leave out ----------------------------------------------------------------


def _of_tasks(files: list[Path], pairs: Pairs, texts: list[str]) -> Measures:
    """Accuracy of each bAbI task, which has a file, and the mean over tasks."""
    shares, answers = {}, iter(zip(texts, pairs, strict=True))
    for file in files:
        right = [text.strip() == answer for text, (_, answer) in itertools.islice(answers, len(read_pairs(file)))]
        shares[f"task {int(file.stem[-2:])}"] = 100 * sum(right) / len(right)
    return {f"mean over {len(shares)} tasks": sum(shares.values()) / len(shares), **shares}


def _copied(files: list[Path], pairs: Pairs, texts: list[str]) -> Measures:
    """Share of the texts with names, versions or commands of the source, as far as the reference keeps them, that have
    all of them: as words, or as parts of words with hyphens, which German makes of them ("X11-Client"); beside it that
    of texts whose reference has them as words, and which have them so, too; and what the source itself would have as a
    translation."""
    right: Counter[str] = Counter()
    for (source, given), text in zip(pairs, texts, strict=True):
        for how, within in (("", stands_in), (" as words", lambda name, said: name in words_in(said))):
            names = [name for name in names_in(source) if within(name, given)]
            right[f"of{how}"] += bool(names)
            right[how] += bool(names) and all(within(name, text) for name in names)
    baseline = _score("translate", pairs, [source for source, _ in pairs])["bleu"]
    return {
        "names copied": 100 * right[""] / max(1, right["of"]),
        "sentences with names": right["of"],
        "names copied as words": 100 * right[" as words"] / max(1, right["of as words"]),
        "bleu of the source": baseline,
    }


def _either_answer(files: list[Path], pairs: Pairs, texts: list[str]) -> Measures:
    """ROUGE-L with the better of two answers, where there are two."""
    both = [line.split("\t") for file in files for line in file.read_text("utf-8").rstrip("\n").split("\n")]
    scores = []
    for fields, text in zip(both, texts, strict=True):
        answers = [answer for answer in fields[1:] if answer.strip()]
        scores.append(max(_score("summarize", [(fields[0], answer)], [text])["rougeL"] for answer in answers))
    return {"rougeL of either": sum(scores) / len(scores)}


def _score(task: str, pairs: Pairs, texts: list[str]) -> Measures:
    """A task's own measure of texts that are there already."""
    return _MEASURES[task]()(texts, [text for _, text in pairs])[0]


SETS: dict[str, Set] = {
    "multi30k.en-de": Set("translate", "multi30k.en-de.{part}.tsv", GREEDY_AND_BEAMS),
    "multi30k.de-en": Set("translate", "multi30k.de-en.{part}.tsv", GREEDY_AND_BEAMS),
    "debian.en-de": Set("translate", "debian.en-de.{part}.tsv", WITH_NAMES, _copied),
    "debian.en-fr": Set("translate", "debian.en-fr.{part}.tsv", WITH_NAMES, _copied),
    "summaries": Set("summarize", "summaries.{part}.tsv", SHORT),
    "babi-1k": Set("answer", "babi-1k.{part}-*.tsv", more=_of_tasks),
    "babi-10k": Set("answer", "babi-10k.{part}-*.tsv", more=_of_tasks),
    "fairytales": Set("summarize", "fairytales.{part}.tsv", GREEDY_AND_BEAMS, _either_answer),
    "sst2": Set("classify", "sst2.{part}.tsv"),
    "reviews": Set("classify", "reviews.{part}.tsv"),
}


if __name__ == "__main__":
    main()
