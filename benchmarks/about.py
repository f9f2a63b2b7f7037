# SPDX-License-Identifier: Apache-2.0
"""Where and with what was measured: the machine, the versions, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from harness import Form, peer_of


def about(forms: Iterable[Form]) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {form.peer: _version(form) for form in forms},
        "commit": _commit(),
    }


def _cpu() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _caches() -> dict[str, int]:
    """Bytes of each cache that the first core sees, as Linux tells them: {"L1d": 49152, "L2": …}."""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        caches[f"L{level}{kind[0].lower() if level == '1' else ''}"] = int(size.removesuffix("K")) * 1024
    return caches


def _version(form: Form) -> str:
    module = peer_of(form).MODULES[-1].partition(".")[0]
    return version(packages_distributions().get(module, [module])[0])


def _commit() -> str | None:
    """Of this checkout; a plus sign tells that files were changed since."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.decode().strip() + ("+" if status.stdout else "")
