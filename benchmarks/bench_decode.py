# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding, one sequence, one thread, every form of every installed engine: `pytest benchmarks`.

A round is one sample of `Job.steps` tokens. The larger workloads are left to `report.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness import Job, Runner, all_forms, check, checked_tokens, missing, peer_of
from worker import convert
from workloads import WORKLOADS, Reference, Workload

FORMS = [form for form in all_forms() if form.role == "contender"]
CHOSEN = ("char", "ptb-medium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=CHOSEN)
def workload(request: pytest.FixtureRequest) -> Workload:
    return WORKLOADS[request.param]


@pytest.fixture(scope="module")
def reference(workload: Workload) -> Reference:
    return Reference(workload)


@pytest.fixture(params=FORMS, ids=str)
def job(request: pytest.FixtureRequest, workload: Workload, folder: Path) -> Job:
    if module := missing(form := request.param):
        pytest.skip(f"no module {module}")
    return Job(form, workload, folder)


@pytest.fixture
def runner(job: Job, reference: Reference, one_core: None) -> Runner:
    convert(job, sys.stderr)
    runner = peer_of(job.form).Runner(job)
    check(job.form, runner.greedy(checked_tokens(job.form)), reference)
    return runner


@pytest.mark.benchmark(warmup=True, disable_gc=True, min_rounds=10, max_time=0.5)
@pytest.mark.filterwarnings("ignore")
def test_decode(runner: Runner, job: Job, benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"{job.workload.name}, {job.steps} tokens"
    benchmark.name = str(job.form)
    benchmark(runner.run, job.steps)
