# SPDX-License-Identifier: Apache-2.0
"""One engine in a process of its own, pinned before the engine is imported, which does what it is told over a pipe.

`Worker` is the other end. Between two requests the process is stopped, threads and all: pools that spin while they
wait would otherwise take the core from the engine whose turn it is.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from harness import Form, Job, Runner, cores, peer_of, time_gaps, time_samples, time_scores, time_texts


class Worker:
    def __init__(self, job: Job, log: IO[str]) -> None:
        """Start the process; what the engine prints goes to the log."""
        self.form, self._log = job.form, log
        command = [sys.executable, __file__, job.to_json()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._receive()

    def ask(self, what: str, **arguments: Any) -> Any:
        """The answer of one of the functions of `_Served`; RuntimeError if it failed there."""
        self._process.send_signal(signal.SIGCONT)
        self._requests.write(json.dumps([what, arguments]) + "\n")
        self._requests.flush()
        return self._receive()

    def _receive(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"{self.form}: its process ended with exit code {self._process.wait()}")
        self._process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def pin(self, cores: set[int]) -> None:
        """Move all threads to these cores."""
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), cores)

    def close(self) -> None:
        self._process.kill()  # works on a stopped process, too
        self._process.wait()
        self._requests.close()
        self._answers.close()


def convert(job: Job, log: IO[str]) -> None:
    """Write the form's model file in a process of its own: what converts must not be in memory when we measure."""
    if peer_of(job.form).convert is None:
        return
    command = [sys.executable, __file__, "--convert", job.to_json()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode:
        printed = done.stdout.strip().splitlines() or [f"{job.form}: conversion ended with exit code {done.returncode}"]
        raise RuntimeError(printed[-1])


class _Served:
    """What a worker can be asked for."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._runner: Any = None

    def build(self, **changes: Any) -> None:
        """The runner, for the job or one with another batch or output."""
        self._runner = None
        gc.collect()
        self._job = replace(self._job, **changes)
        self._runner = peer_of(self._job.form).Runner(self._job)
        self._job.workload.forget_weights()  # the engine has its own now
        gc.collect()

    def start(self) -> dict[str, float]:
        """Import the engine, build the runner, write one token: seconds of each, and megabytes of memory after it."""
        peer, figures = peer_of(self._job.form), {}
        if peer.convert is None:
            _ = self._job.workload.weights  # made here, but a user would find them in a file

        def note(what: str, seconds: float) -> None:
            figures[what], figures[f"{what}_mb"] = seconds, resident_mb()

        began = time.perf_counter()
        import_module(peer.MODULES[-1])
        note("import", time.perf_counter() - began)
        began = time.perf_counter()
        self._runner = peer.Runner(self._job)
        note("load", time.perf_counter() - began)
        self._job.workload.forget_weights()
        began = time.perf_counter()
        self._runner.run(1) if self._job.form.streams else self._runner.greedy(1)
        note("token", time.perf_counter() - began)
        self._runner.greedy(100)
        note("text", 0.0)
        return figures

    def greedy(self, count: int) -> list[list[int]]:
        return self._running().greedy(count)

    def samples(self, seconds: float) -> list[float]:
        return time_samples(self._running(), self._job.steps, seconds)

    def gaps(self, seconds: float, most: int) -> list[float]:
        return time_gaps(self._running(), seconds, most)

    def score(self, count: int) -> list[list[float]]:
        """Of the first texts."""
        return [one.tolist() for one in self._running().score(self._job.workload.texts()[:count])]

    def scores(self, seconds: float) -> list[float]:
        return time_scores(self._running(), self._job.workload.texts(), seconds)

    def texts(self, tokens: int, seconds: float) -> list[float]:
        return time_texts(self._running(), tokens, seconds)

    def _running(self) -> Runner:
        runner: Runner = self._runner
        return runner


def resident_mb() -> float:
    """Of this process, Linux only."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def serve(job: Job) -> None:
    os.sched_setaffinity(0, cores(job.threads))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines may print what they like
    served = _Served(job)
    _answer(answers, value=None)
    for line in sys.stdin:
        what, arguments = json.loads(line)
        gc.disable()
        try:
            _answer(answers, value=getattr(served, what)(**arguments))
        except Exception as error:  # engines raise what they like
            _answer(answers, error=_description(job.form, error))
        gc.enable()


def _description(form: Form, error: Exception) -> str:
    """On one line."""
    return " ".join(f"{form}: {type(error).__name__}: {error}".split())


def _answer(answers: IO[str], **answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def main() -> None:
    warnings.simplefilter("ignore")
    if sys.argv[1] != "--convert":
        return serve(Job.from_json(sys.argv[1]))
    job = Job.from_json(sys.argv[2])
    try:
        peer_of(job.form).convert(job)  # type: ignore[misc]
    except Exception as error:
        print(_description(job.form, error))
        sys.exit(1)


if __name__ == "__main__":
    main()
