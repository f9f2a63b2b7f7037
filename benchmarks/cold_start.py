# SPDX-License-Identifier: Apache-2.0
"""What it costs to begin: import, load, and resident memory. Linux only (reads /proc).

python benchmarks/cold_start.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import fastlm

REPEATS = 15
ROW_CACHE_MB = 16

# Each runs in a process of its own and prints one number.
IMPORT = "import time, numpy; t = time.perf_counter(); import fastlm; print((time.perf_counter() - t) * 1e3)"
LOAD = """
import sys, time, fastlm
fastlm.load(sys.argv[1])
t = time.perf_counter()
lm = fastlm.load(sys.argv[1])
print((time.perf_counter() - t) * 1e3)
"""
RESIDENT = f"""
import sys, fastlm
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
before = resident()
lm = fastlm.load(sys.argv[1], row_cache_mb={ROW_CACHE_MB})
lm.generate([1], max_tokens=100, temperature=0.8, top_p=0.95, seed=1)
print(resident() - before)
"""


def measure(code, *arguments):
    """Median of several processes, and the best."""
    run = [sys.executable, "-c", code, *arguments]
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    options = {"capture_output": True, "text": True, "check": True, "cwd": "/", "env": usual}
    times = [float(subprocess.run(run, **options).stdout) for _ in range(REPEATS)]
    return statistics.median(times), min(times)


def export_model(path, vocab=3200, size=850, layers=2):
    """About 50 MB of float32."""
    r = np.random.default_rng(0)

    def u(*shape):
        return r.uniform(-0.05, 0.05, shape).astype(np.float32)

    weights = {"embedding": u(vocab, size), "output.bias": u(vocab)}
    for n in range(layers):
        weights[f"lstm.{n}.kernel"] = u(size, 4 * size)
        weights[f"lstm.{n}.recurrent_kernel"] = u(size, 4 * size)
        weights[f"lstm.{n}.bias"] = u(4 * size)
    return fastlm.export(weights, path).bytes / 1e6


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.gguf")
        megabytes = export_model(path)
        print("import fastlm, beyond numpy:  median {:6.1f} ms, best {:6.1f} ms".format(*measure(IMPORT)))
        print(
            "load {:.1f} MB, warm cache:    median {:6.1f} ms, best {:6.1f} ms".format(megabytes, *measure(LOAD, path))
        )
        resident, _ = measure(RESIDENT, path)
        print(
            f"resident after 100 tokens:    {resident:6.1f} MB: the file, and {resident - megabytes:.1f} MB besides, of"
        )
        print(
            f"                              which up to {ROW_CACHE_MB * 2**20 / 1e6:.1f} MB is the cache of gate rows"
        )


if __name__ == "__main__":
    main()
