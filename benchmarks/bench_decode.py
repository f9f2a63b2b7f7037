# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding, batch 1, float32, one thread: `pytest benchmarks/bench_decode.py`. One round is 100 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from harness import PEERS, TOKENS, Peer, Runner, checked_runner, missing
from workloads import WORKLOADS, Workload


@pytest.fixture
def runner(workload: Workload, peer: Peer, one_core: None, tmp_path: Path) -> Runner:
    if reason := missing(peer):
        pytest.skip(reason)
    return checked_runner(peer, workload, tmp_path)


@pytest.mark.benchmark(warmup=True, disable_gc=True, min_rounds=20)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.NAME)
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_decode(runner: Runner, workload: Workload, peer: Peer, benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"{workload.name}, {TOKENS} tokens"
    benchmark.name = peer.NAME
    benchmark(runner.run, TOKENS)
