# SPDX-License-Identifier: Apache-2.0
"""Measure everything and write `benchmarks/report/`: report.json, report.md and plots.

    python benchmarks/report.py [--quick] [--only SECTION ...] [--resume] [--out FOLDER] [--readme README.md]

report.json is written after every point, so a run that was interrupted goes on with --resume. --draw measures nothing
and writes the tables and plots again. The full run takes about an hour, --quick about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from about import about
from compare import Company, Figures, Settings, decode, installed_forms, make_probe
from harness import PADDED, Form, Job
from tables import readme_parts, report_text, update_readme
from worker import Worker, convert
from workloads import WORKLOADS, Workload

TASK_TOKENS = 200

CURVES = (
    "fastlm f32",
    "fastlm int8",
    "fastlm int4",
    "ONNX Runtime f32",
    "ONNX Runtime int8",
    "LiteRT f32",
    "LiteRT int8",
    "OpenVINO bf16",
    "PyTorch int8",
    "TensorFlow f32 XLA loop",
)
"""Forms whose scaling is shown."""

Wanted = Callable[[str], bool]
"""Whether the point of this name is to be measured."""

Points = Iterator[tuple[str, Figures]]


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    name: str
    workloads: tuple[str, ...]
    threads: tuple[int, ...]
    batch_threads: tuple[int, ...]  # also of the task
    batches: tuple[int, ...]
    hidden: tuple[int, ...]
    vocabularies: tuple[int, ...]
    curve_batches: tuple[int, ...]
    latency_seconds: float
    starts: int
    settings: Settings
    forms: list[Form]

    @property
    def contenders(self) -> list[Form]:
        return [form for form in self.forms if form.role == "contender"]

    @property
    def curves(self) -> list[Form]:
        return [form for form in self.forms if str(form) in CURVES]


# ---- sections --------------------------------------------------------------------------------------------


def decode_section(plan: Plan, wanted: Wanted) -> Points:
    """Greedy decoding of one sequence: every form, every workload."""
    yield from _decoded(plan, wanted, plan.workloads, plan.threads, (1,), plan.forms)


def batch_section(plan: Plan, wanted: Wanted) -> Points:
    """Greedy decoding of batches."""
    yield from _decoded(plan, wanted, plan.workloads, plan.batch_threads, plan.batches, plan.contenders)


def scaling_section(plan: Plan, wanted: Wanted) -> Points:
    """How the time of a step grows with each size, one thread."""
    curves = [Workload(f"hidden {H}", V=1000, E=256, H=H, L=1) for H in plan.hidden]
    curves += [Workload(f"vocabulary {V}", V=V, E=256, H=512, L=1) for V in plan.vocabularies]
    for workload in curves:
        yield from _decoded(plan, wanted, (workload,), (1,), (1,), plan.curves)
    yield from _decoded(plan, wanted, ("ptb-medium",), (1,), plan.curve_batches, plan.curves)
    yield from _decoded(plan, wanted, ("ptb-medium",), _powers_of_two(len(os.sched_getaffinity(0))), (1,), plan.curves)


def _decoded(
    plan: Plan,
    wanted: Wanted,
    workloads: Iterable[str | Workload],
    threads: Iterable[int],
    batches: Iterable[int],
    forms: list[Form],
) -> Points:
    for workload in (WORKLOADS[one] if isinstance(one, str) else one for one in workloads):
        for count in threads:
            names = {f"{workload.name}, batch {batch}, {count}T": batch for batch in batches}
            names = {name: batch for name, batch in names.items() if wanted(name)}
            if names:
                with Company(forms, workload, count, plan.settings) as company:
                    for name, batch in names.items():
                        yield name, decode(company, batch, plan.settings)


def latency_section(plan: Plan, wanted: Wanted) -> Points:
    """The time of every single token as Python sees it come, one thread."""
    streaming = [form for form in plan.contenders if form.streams]
    for name in ("char", "ptb-medium"):
        if wanted(name):
            with Company(streaming, WORKLOADS[name], 1, plan.settings) as company:
                company.build(1)
                yield name, company.measure(lambda one: one.ask("gaps", seconds=plan.latency_seconds, most=20_000))


def task_section(plan: Plan, wanted: Wanted) -> Points:
    """A text of 200 drawn tokens: fastlm.generate against the loop that a user of each peer writes."""
    drawing = [form for form in plan.forms if form.draws]
    seconds = plan.settings.seconds
    for threads in plan.batch_threads:
        if wanted(name := f"ptb-medium, {threads}T"):
            with Company(drawing, WORKLOADS["ptb-medium"], threads, plan.settings) as company:
                company.build(1, output="logits")
                yield name, company.measure(lambda one: one.ask("texts", tokens=TASK_TOKENS, seconds=seconds))


def score_section(plan: Plan, wanted: Wanted) -> Points:
    """Log-probabilities of many texts of 8 to 48 tokens: fastlm.score against arrays of 32 texts, padded."""
    scoring, seconds = [form for form in plan.forms if form.scores], plan.settings.seconds
    for name in ("char", "ptb-medium"):
        for threads in plan.batch_threads:
            if wanted(point := f"{name}, {threads}T"):
                with Company(scoring, WORKLOADS[name], threads, plan.settings) as company:
                    company.build(1, output="logprobs")
                    yield point, _of_a_token(company.measure(lambda one: one.ask("scores", seconds=seconds), PADDED))


def _of_a_token(figures: Figures) -> Figures:
    """With the limits of one token of a batch instead of all."""
    batch = figures["batch"]
    limits = {name: {what: us / batch for what, us in one.items()} for name, one in figures["limits"].items()}
    return {**figures, "limits": limits}


def start_section(plan: Plan, wanted: Wanted) -> Points:
    """Fresh processes: seconds to import the engine, load the model and write a token, and memory after each."""
    for form in plan.contenders:
        if wanted(str(form)):
            try:
                yield str(form), _started(Job(form, WORKLOADS["ptb-medium"], plan.settings.folder), plan)
            except RuntimeError as error:
                print(f"  not available: {error}", flush=True)


def _started(job: Job, plan: Plan) -> Figures:
    convert(job, plan.settings.log)
    runs = []
    for _ in range(plan.starts + 1):  # the first one brings the files into the page cache
        worker = Worker(job, plan.settings.log)
        try:
            runs.append(worker.ask("start"))
        finally:
            worker.close()
    return {
        "peer": job.form.peer,
        "precision": job.form.precision,
        "how": job.form.how,
        **{key: statistics.median(run[key] for run in runs[1:]) for key in runs[0]},
    }


SECTIONS = {
    "decode": decode_section,
    "batch": batch_section,
    "latency": latency_section,
    "scaling": scaling_section,
    "task": task_section,
    "score": score_section,
    "start": start_section,
}


# ---- the run ---------------------------------------------------------------------------------------------


class Store:
    """report.json: what is known about the machine, and each section's points."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.report: dict[str, Any] = {"sections": {}, "plans": {}}
        if path.exists():
            self.report = json.loads(path.read_text())

    def has(self, section: str, point: str) -> bool:
        return point in self.report["sections"].get(section, {})

    def begin(self, section: str, plan: str, resume: bool) -> None:
        """Forget the section's points, unless the run that made them, of the same plan, goes on."""
        if not resume or self.report["plans"].get(section) != plan:
            self.report["sections"].pop(section, None)
        self.report["plans"][section] = plan

    def put(self, section: str, point: str, figures: Figures) -> None:
        self.report["sections"].setdefault(section, {})[point] = figures
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(self.report, indent=1))
        temporary.replace(self._path)


def run(store: Store, plan: Plan, sections: Iterable[str], resume: bool) -> None:
    began = time.monotonic()
    store.report["about"] = about(plan.forms)
    for section in sections:
        store.begin(section, plan.name, resume)
        print(f"{section}: {SECTIONS[section].__doc__}", flush=True)
        for point, figures in SECTIONS[section](plan, lambda point, section=section: not store.has(section, point)):
            store.put(section, point, figures)
            print(f"  {point} ({(time.monotonic() - began) / 60:.1f} min)", flush=True)


def make_plan(quick: bool, settings: Settings) -> Plan:
    threads = (1, 2)[: len(os.sched_getaffinity(0))]
    return Plan(
        name="quick" if quick else "full",
        workloads=("char", "ptb-medium") if quick else tuple(WORKLOADS),
        threads=threads,
        batch_threads=threads[:1] if quick else threads,
        batches=(8,) if quick else (8, 64),
        hidden=(128, 1024) if quick else (128, 256, 512, 1024, 2048),
        vocabularies=(100, 10_000) if quick else (100, 1000, 10_000, 50_000),
        curve_batches=(1, 8) if quick else (1, 2, 4, 8, 16, 32, 64),
        latency_seconds=0.3 if quick else 2.0,
        starts=1 if quick else 5,
        settings=settings,
        forms=installed_forms(),
    )


def _powers_of_two(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure everything and write the report.")
    parser.add_argument("--quick", action="store_true", help="two workloads, few rounds")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--resume", action="store_true", help="keep the points that report.json has already")
    parser.add_argument("--draw", action="store_true", help="measure nothing; tables and plots from report.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "report", metavar="FOLDER")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also put the short table between its markers")
    arguments = parser.parse_args()

    if arguments.readme:
        readme_parts(arguments.readme)  # a file without markers is refused now, not in an hour
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = Store(arguments.out / "report.json")
    if not arguments.draw:
        with tempfile.TemporaryDirectory() as directory, open(arguments.out / "engines.log", "w") as log:
            rounds, seconds = (3, 0.1) if arguments.quick else (5, 0.25)
            settings = Settings(rounds, seconds, Path(directory), log, make_probe(Path(directory)))
            run(store, make_plan(arguments.quick, settings), arguments.only, arguments.resume)
    if not store.report["sections"]:
        sys.exit("nothing was measured yet")

    from plots import draw_all

    plots = draw_all(store.report, arguments.out)
    (arguments.out / "report.md").write_text(report_text(store.report, plots))
    if arguments.readme:
        update_readme(arguments.readme, store.report)
    print(f"{arguments.out / 'report.md'}")


if __name__ == "__main__":
    main()
