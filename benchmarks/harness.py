# SPDX-License-Identifier: Apache-2.0
"""What `bench_decode.py` and `compare.py` share: the engines, one core for all of them, and the check before timing."""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Protocol

import peer_fastlm
import peer_litert
import peer_onnxruntime
import peer_tensorflow
from workloads import Workload

TOKENS = 100
"""Tokens in one timed sample: the length of TensorFlow's loop, long enough to hide the clock (about 0.1 µs)."""

CHECKED = 50
"""Greedy tokens that must equal the float64 reference. Float32 cannot follow float64 for ever: rounding grows."""


class Runner(Protocol):
    """A model in an engine, ready to decode one sequence greedily on one thread."""

    def tokens(self, count: int) -> list[int]:
        """The first `count` tokens after `FIRST_TOKEN`, from a state of zeros."""

    def run(self, count: int) -> None:
        """Decode `count` tokens, a multiple of TOKENS, from wherever the engine stands, and hand over nothing."""


class Peer(Protocol):
    """What each `peer_*.py` defines."""

    @property
    def NAME(self) -> str: ...
    @property
    def MODULES(self) -> tuple[str, ...]: ...  # what must be importable; the engine itself comes last
    def Runner(self, workload: Workload, directory: Path) -> Runner: ...  # files go to the directory


PEERS: tuple[Peer, ...] = (peer_fastlm, peer_onnxruntime, peer_litert, peer_tensorflow)


def missing(peer: Peer) -> str | None:
    """Why the engine cannot run here, or None."""
    for module in peer.MODULES:
        try:
            import_module(module)
        except ImportError as error:
            return str(error)
    return None


def checked_runner(peer: Peer, workload: Workload, directory: Path) -> Runner:
    """The workload in this engine, after its greedy tokens were found equal to the float64 reference."""
    runner = peer.Runner(workload, Path(tempfile.mkdtemp(dir=directory)))
    if (found := runner.tokens(CHECKED)) != (expected := workload.reference(CHECKED)):
        raise RuntimeError(f"{peer.NAME} decodes {workload.name} wrongly: {found}, expected {expected}")
    return runner


def pin_to_one_core() -> None:
    """Keep this thread, and all that it starts from now on, on the first core that the process may use.

    Call it before an engine is imported. Without effect where the system cannot pin (macOS, Windows).
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
