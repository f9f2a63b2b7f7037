# SPDX-License-Identifier: Apache-2.0
"""The one extension. Everything else about the package is in pyproject.toml.

Two switches, for development: FASTLM_DEBUG=1 (no optimisation, symbols) and FASTLM_SANITIZE=1 (address and
undefined-behaviour sanitizers).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# No -march, no -ffast-math and no contraction: the sources name their instruction sets, and every sum has one
# order (docs/numerics.md).
flags = ["-std=c11", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off"]
link_flags = []
if os.environ.get("FASTLM_DEBUG"):
    flags += ["-O0", "-g"]
if os.environ.get("FASTLM_SANITIZE"):
    sanitize = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags += sanitize
    link_flags += sanitize

engine = Extension(
    "fastlm._engine",
    ["csrc/_engine.pyx", *sorted(str(p) for p in Path("csrc").glob("*.c"))],
    depends=[str(p) for p in Path("csrc").glob("*.[hp]*")],
    include_dirs=["csrc"],
    libraries=["m", "pthread"],
    extra_compile_args=flags,
    extra_link_args=link_flags,
)

setup(ext_modules=cythonize([engine], include_path=["csrc"], build_dir="build"))
