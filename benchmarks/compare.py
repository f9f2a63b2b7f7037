# SPDX-License-Identifier: Apache-2.0
"""Compare the engines, round after round, so that the machine's noise hits all of them alike.

    python benchmarks/compare.py [workload ...] [--batch N ...] [--threads N ...] [--form TEXT ...] [--json FILE]

Every form of every installed engine has a process of its own, pinned to as many cores as it has threads, and all are
stopped but the one that is timed. In a round each decodes for a while, after a warm-up of its own, and the order turns
from round to round. Ratios are formed within a round; the median of them is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness import OURS, Form, Job, all_forms, check, check_scores, checked_tokens, cores, missing
from peer_fastlm import SCREENED_FORMS
from roofline import Probe
from worker import Worker, convert
from workloads import PRECISIONS, WORKLOADS, Reference, Workload

CHECKED_TEXTS = 4

Figures = dict[str, Any]
"""What was measured at one point: as it is stored in JSON."""


@dataclass(frozen=True)
class Settings:
    rounds: int
    seconds: float  # of every form in every round
    folder: Path  # for model files
    log: IO[str]  # for what the engines print
    probe: Probe | None


class Company:
    """The processes of several forms for one workload and number of threads."""

    def __init__(self, forms: Iterable[Form], workload: Workload, threads: int, settings: Settings) -> None:
        self._workload, self._threads, self._settings = workload, threads, settings
        self._reference = Reference(workload)
        workload.forget_weights()
        self._workers: dict[Form, Worker | None] = dict.fromkeys(forms)
        self.absent: dict[str, str] = {}

    def __enter__(self) -> Company:
        return self

    def __exit__(self, *_: object) -> None:
        for form in list(self._workers):
            self._dismiss(form)

    def build(self, batch: int, output: str = "token") -> None:
        """Make all ready for a batch and check them, two at a time; forms that fail leave, and `absent` says why.

        Only contenders run batches.
        """
        if batch > 1:
            for form in [form for form in self._workers if form.role != "contender"]:
                self._dismiss(form)
        with ThreadPoolExecutor(2) as pool:
            for form, failure in pool.map(partial(self._try_to_prepare, batch=batch, output=output), self._workers):
                if failure:
                    self._leave(form, failure)

    def _try_to_prepare(self, form: Form, batch: int, output: str) -> tuple[Form, str | None]:
        try:
            self._prepare(Job(form, self._workload, self._settings.folder, batch, self._threads, output))
        except RuntimeError as error:
            return form, str(error)
        return form, None

    def _prepare(self, job: Job) -> None:
        convert(job, self._settings.log)
        worker = self._workers[job.form] = self._workers[job.form] or Worker(job, self._settings.log)
        worker.pin(cores(self._threads, list(self._workers).index(job.form)))  # neighbours get ready side by side,
        worker.ask("build", batch=job.batch, output=job.output)
        if job.output == "logprobs":
            texts = self._workload.texts()[:CHECKED_TEXTS]
            check_scores(job.form, worker.ask("score", count=len(texts)), self._reference, texts)
        else:
            check(job.form, worker.ask("greedy", count=checked_tokens(job.form)), self._reference)
        worker.pin(cores(self._threads))  # but all are timed on the same cores

    def _leave(self, form: Form, reason: str) -> None:
        self.absent[str(form)] = reason
        self._dismiss(form)

    def _dismiss(self, form: Form) -> None:
        if worker := self._workers.pop(form):
            worker.close()

    def measure(self, ask: Callable[[Any], list[float]], batch: int = 1) -> Figures:
        """`ask` each worker for samples in µs, round after round, and the probe for the limits between them."""
        limits: list[dict[str, tuple[float, float]]] = []
        samples: dict[Form, list[list[float]]] = {form: [] for form in self._workers}
        for turn in range(self._settings.rounds):
            if self._settings.probe:
                limits.append(self._settings.probe.limits(self._workload, batch, self._threads))
            for form in _turned(list(self._workers), turn):
                try:
                    samples[form].append(ask(self._workers[form]))
                except RuntimeError as error:
                    self._leave(form, str(error))
        return {
            "workload": self._workload.name,
            "sizes": {letter: getattr(self._workload, letter) for letter in "VEHL"},
            "batch": batch,
            "threads": self._threads,
            "limits": _limits(limits),
            "forms": {str(form): _form_figures(form, samples[form]) for form in self._workers},
            "absent": dict(self.absent),
        }


def _turned(forms: list[Form], turn: int) -> list[Form]:
    first = turn % max(1, len(forms))
    return forms[first:] + forms[:first]


def _form_figures(form: Form, rounds: list[list[float]]) -> Figures:
    everything = np.concatenate(rounds)
    return {
        "peer": form.peer,
        "precision": form.precision,
        "how": form.how,
        "role": form.role,
        "median_us": float(np.median(everything)),
        "rounds_us": [float(np.median(one)) for one in rounds],
        "percentiles_us": {str(p): float(np.percentile(everything, p)) for p in (50, 99, 99.9)},
        "samples": len(everything),
    }


def _limits(rounds: Sequence[dict[str, tuple[float, float]]]) -> Figures:
    """The median over the rounds: µs for reading and for products; the larger one bounds a step."""
    found = {}
    for precision in PRECISIONS if rounds else ():
        reading, products = np.median([one[precision] for one in rounds], axis=0)
        found[precision] = {"reading_us": float(reading), "products_us": float(products)}
    return found


def limit_us(figures: Figures, precision: str) -> float | None:
    """What a step takes at least on this machine."""
    limit = figures["limits"].get(precision)
    return max(limit.values()) if limit else None


def ratio(figures: Figures, form: str, base: str) -> float:
    """Time of one form over that of another: formed in every round, and the median of them."""
    rounds = (np.array(figures["forms"][name]["rounds_us"]) for name in (form, base))
    return float(np.median(np.divide(*rounds)))


def best_peer(figures: Figures, precision: str) -> str | None:
    """The fastest form of another engine whose weights are as precise or more so."""
    allowed = PRECISIONS[: PRECISIONS.index(precision) + 1]
    rivals = {
        name: form["median_us"]
        for name, form in figures["forms"].items()
        if form["peer"] != OURS and form["role"] == "contender" and form["precision"] in allowed
    }
    return min(rivals, key=rivals.__getitem__, default=None)


def decode(company: Company, batch: int, settings: Settings) -> Figures:
    """Greedy decoding of one batch."""
    company.build(batch)
    return company.measure(lambda worker: worker.ask("samples", seconds=settings.seconds), batch)


def installed_forms() -> list[Form]:
    """Those that can run here; the others are named on the way."""
    forms = []
    for form in all_forms():
        if reason := missing(form):
            print(f"without {form}: no module {reason}", file=sys.stderr)
        else:
            forms.append(form)
    return forms


def make_probe(directory: Path) -> Probe | None:
    try:
        return Probe(directory)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"without the hardware's limits: {error}", file=sys.stderr)
        return None


def table(figures: Figures) -> str:
    sizes = ", ".join(f"{letter} {size}" for letter, size in figures["sizes"].items())
    lines = [f"{figures['workload']}: {sizes}, batch {figures['batch']}, {figures['threads']} thread(s)"]
    lines += [f"{'':34} {'median µs':>10} {'p99 µs':>10} {'of limit':>9} {'time / fastlm':>14}"]
    for name, form in sorted(figures["forms"].items(), key=lambda item: item[1]["median_us"]):
        limit, base = limit_us(figures, form["precision"]), f"{OURS} {form['precision']}"
        fraction = f"{limit / form['median_us']:.0%}" if limit else ""
        over = f"{ratio(figures, name, base):.2f}" if base in figures["forms"] else ""
        percentile = form["percentiles_us"]["99"]
        lines += [f"{name:34} {form['median_us']:10.2f} {percentile:10.2f} {fraction:>9} {over:>14}"]
    lines += [f"not available: {reason:.200}" for reason in figures["absent"].values()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time greedy decoding.")
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {' '.join(WORKLOADS)}; default: char")
    parser.add_argument("--model", type=Path, help="a trained model in float32, besides: fastlm with a screen, too")
    parser.add_argument("--text", type=Path, help="text that its screen is made for (default: the model's own)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--form", nargs="+", default=[""], help="only forms whose name holds one of these texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of every form in every round (default: 0.3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")

    most = len(os.sched_getaffinity(0))
    if not all(1 <= threads <= most for threads in arguments.threads) or min(arguments.batch) < 1:
        parser.error(f"expected --threads from 1 to {most}, the cores of this process, and --batch from 1")
    workloads = [WORKLOADS[name] for name in arguments.workloads or ([] if arguments.model else ["char"])]
    forms = installed_forms()
    if arguments.model:
        workloads.append(Workload.of_model(arguments.model, arguments.text))
        forms += SCREENED_FORMS
    forms = [form for form in forms if any(text in str(form) for text in arguments.form)]
    if not forms:
        parser.error(
            f"no form's name holds {' or '.join(arguments.form)}; there are {', '.join(map(str, all_forms()))}"
        )

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up
    found = []
    with tempfile.TemporaryDirectory() as directory, open(Path(directory) / "log", "w") as log:
        folder = Path(directory)
        settings = Settings(arguments.rounds, arguments.seconds, folder, log, make_probe(folder))
        for workload in workloads:
            for threads in arguments.threads:
                fit = [form for form in forms if workload.source or form not in SCREENED_FORMS]
                with Company(fit, workload, threads, settings) as company:
                    for batch in arguments.batch:
                        found.append(decode(company, batch, settings))
                        print(table(found[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
