# SPDX-License-Identifier: Apache-2.0
"""Build and run `roofline.c`. `python benchmarks/roofline.py` prints bandwidth by footprint and threads."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path


class Probe:
    def __init__(self, directory: Path) -> None:
        """Compile the probe into the directory; OSError or CalledProcessError where there is no C compiler."""
        self._program = str(directory / "roofline")
        build = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-pthread", "-o", self._program]
        subprocess.run([*build, str(Path(__file__).with_suffix(".c"))], check=True)

    def bandwidth(self, footprint: int, threads: int = 1) -> float:
        """Bytes per second when `footprint` bytes are read again and again."""
        command = [self._program, str(footprint), str(threads)]
        return 1e9 * float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def print_table(self) -> None:
        subprocess.run([self._program], check=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        Probe(Path(directory)).print_table()
