# SPDX-License-Identifier: Apache-2.0
"""What the machine allows: build and run `roofline.c` and `peak.c`. `python benchmarks/roofline.py` prints both."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from harness import cores
from workloads import PRECISIONS, Workload

_ARITHMETIC = {"f32": "f32", "bf16": "bf16", "int8": "int8", "int4": "int8"}  # int4 is widened to int8


class Probe:
    def __init__(self, directory: Path) -> None:
        """Compile the probes into the directory; OSError or CalledProcessError where there is no C compiler."""
        self._directory = directory
        for name in ("roofline", "peak"):
            build = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-pthread", "-o", str(directory / name)]
            subprocess.run([*build, str(Path(__file__).with_name(f"{name}.c"))], check=True)

    def bandwidth(self, footprint: int, threads: int = 1) -> float:
        """Bytes per second when `footprint` bytes are read again and again."""
        return 1e9 * self._run("roofline", footprint, threads)

    def peak(self, precision: str, threads: int = 1) -> float:
        """Multiply-adds per second in registers."""
        return 1e9 * self._run("peak", _ARITHMETIC[precision], threads)

    def limits(self, workload: Workload, batch: int, threads: int) -> dict[str, tuple[float, float]]:
        """For each precision the µs a step takes at least, for reading its weights and for its products."""
        peaks = {kind: self.peak(kind, threads) for kind in set(_ARITHMETIC.values())}
        limits = {}
        for precision in PRECISIONS:
            footprint = workload.streamed_bytes(precision, batch)
            reading = footprint / self.bandwidth(footprint, threads)
            limits[precision] = 1e6 * reading, 1e6 * workload.products * batch / peaks[_ARITHMETIC[precision]]
        return limits

    def _run(self, program: str, argument: object, threads: int) -> float:
        command = [str(self._directory / program), str(argument), str(threads)]
        pin = (lambda: os.sched_setaffinity(0, cores(threads))) if hasattr(os, "sched_setaffinity") else None
        return float(subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=pin).stdout)

    def print_tables(self) -> None:
        subprocess.run([str(self._directory / "roofline")], check=True)
        everything = len(os.sched_getaffinity(0))
        print(f"\n 10^9 multiply-adds/s   1 thread   all {everything}")
        for kind in ("f32", "bf16", "int8"):
            print(f"{kind:>21} {self.peak(kind) / 1e9:10.1f} {self.peak(kind, everything) / 1e9:7.1f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        Probe(Path(directory)).print_tables()
