# SPDX-License-Identifier: Apache-2.0
"""Compare the engines in one process, round after round, so that the machine's noise hits all of them alike.

    python benchmarks/compare.py [workload ...] [--rounds N] [--seconds S] [--json FILE]

In a round every installed engine decodes for a while, after a warm-up of its own, and the order turns from round to
round. Ratios are formed within a round; the median of them is what counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import peer_fastlm
from harness import PEERS, TOKENS, Peer, Runner, checked_runner, missing, pin_to_one_core
from roofline import Probe
from workloads import WORKLOADS, Workload

OURS = peer_fastlm.NAME


def main() -> None:
    parser = argparse.ArgumentParser(description="Time greedy decoding: batch 1, float32, one thread.")
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"default: {' '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="of every engine in every round (default: 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")

    pin_to_one_core()
    peers = []
    for peer in PEERS:
        if reason := missing(peer):
            print(f"without {peer.NAME}: {reason}", file=sys.stderr)
        else:
            peers.append(peer)
    reports = []
    with tempfile.TemporaryDirectory() as directory:
        probe = _probe(Path(directory))
        for name in arguments.workloads or WORKLOADS:
            times = measure(WORKLOADS[name], peers, probe, arguments.rounds, arguments.seconds)
            reports.append(summary(WORKLOADS[name], *times))
            print(table(reports[-1]), flush=True)
    if arguments.json:
        machine = {"cpu": _cpu(), "system": platform.platform(), "python": platform.python_version()}
        versions = {peer.NAME: version(peer.MODULES[-1]) for peer in peers}
        arguments.json.write_text(json.dumps({"machine": machine, "versions": versions, "results": reports}, indent=2))


def measure(
    workload: Workload, peers: list[Peer], probe: Probe | None, rounds: int, seconds: float
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Time all engines, `rounds` times over.

    Returns
    -------
    samples : engine -> [rounds][samples], µs per token
    floors : [rounds], µs that reading the weights once takes at the bandwidth of the moment; empty without a probe
    """
    samples: dict[str, list[list[float]]] = {peer.NAME: [] for peer in peers}
    floors = []
    with tempfile.TemporaryDirectory() as directory:
        runners = [(peer.NAME, checked_runner(peer, workload, Path(directory))) for peer in peers]
        for _ in range(rounds):
            if probe:
                floors.append(1e6 * workload.streamed_bytes / probe.bandwidth(workload.streamed_bytes))
            for name, runner in runners:
                samples[name].append(_time(runner, seconds))
            runners = runners[1:] + runners[:1]
    return samples, floors


def _time(runner: Runner, seconds: float) -> list[float]:
    """µs per token of one sample of TOKENS tokens after the other, for about so many seconds."""
    runner.run(TOKENS)  # the caches still hold the weights of the engine before
    times: list[float] = []
    gc.disable()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        runner.run(TOKENS)
        times.append(1e6 * (time.perf_counter() - start) / TOKENS)
    gc.enable()
    return times


def summary(workload: Workload, samples: dict[str, list[list[float]]], floors: list[float]) -> dict[str, Any]:
    """The figures of one workload, as they are printed and written to JSON."""
    rounds = {name: np.array([np.median(times) for times in of_rounds]) for name, of_rounds in samples.items()}
    engines = {
        name: {
            "median_us": float(np.median(np.concatenate(samples[name]))),
            "p99_us": float(np.percentile(np.concatenate(samples[name]), 99)),
            "of_roofline": float(np.median(floors / rounds[name])) if floors else None,
            "over_fastlm": float(np.median(rounds[name] / rounds[OURS])) if OURS in rounds else None,
        }
        for name in samples
    }
    return {
        "workload": asdict(workload) | {"batch": 1, "threads": 1, "dtype": "float32"},
        "streamed_bytes": workload.streamed_bytes,
        "floor_us": float(np.median(floors)) if floors else None,
        "engines": engines,
    }


def table(report: dict[str, Any]) -> str:
    workload, floor, engines = report["workload"], report["floor_us"], report["engines"]
    title = "{name}: V {V}, E {E}, H {H}, L {L}, batch {batch}, {dtype}, {threads} thread".format(**workload)
    megabytes = report["streamed_bytes"] / 1e6
    lines = [title, f"{megabytes:.1f} MB of weights per token" + (f", read in {floor:.1f} µs" if floor else "")]
    lines += [f"{'engine':20} {'median µs':>10} {'p99 µs':>10} {'of roofline':>12} {'time / fastlm':>14}"]
    for name, figures in sorted(engines.items(), key=lambda item: item[1]["median_us"]):
        fraction, ratio = figures["of_roofline"], figures["over_fastlm"]
        lines += [
            f"{name:20} {figures['median_us']:10.2f} {figures['p99_us']:10.2f} "
            f"{f'{fraction:.0%}' if fraction else '':>12} {f'{ratio:.2f}' if ratio else '':>14}"
        ]
    others = [name for name in engines if name != OURS]
    if OURS in engines and others:
        best = min(others, key=lambda name: engines[name]["median_us"])
        lines += [f"{best}, the fastest peer, takes {engines[best]['over_fastlm']:.2f} × the time of fastlm"]
    return "\n".join(lines) + "\n"


def _probe(directory: Path) -> Probe | None:
    try:
        return Probe(directory)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"without the roofline: {error}", file=sys.stderr)
        return None


def _cpu() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
