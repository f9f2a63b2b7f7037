# SPDX-License-Identifier: Apache-2.0
"""Processors that this machine is not: 64-bit ARM and older x86-64, emulated by qemu (CONTRIBUTING.md: what to
install). They run only the levels that they have, and get the bits of every other machine."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc").glob("*.c"))
CHECK = ROOT / "tests" / "c" / "check_kernels.c"
CC = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "cc")
CLANG = next((name for name in ("clang", *(f"clang-{n}" for n in range(30, 10, -1))) if shutil.which(name)), "clang")
ARM_CC, ARM_ROOT = "aarch64-linux-gnu-gcc", Path("/usr/aarch64-linux-gnu")  # Debian's names
LEVELS = """
#include "fastlm.h"
#include <stdio.h>
int main(void) {
    for (size_t i = 0; i < fl_isa_count(); i++)
        if (fl_isa_supported(i)) puts(fl_isa_name(i));
}
"""


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", timeout=900)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def need(*programs):
    for name in programs:
        if not shutil.which(name):
            pytest.skip(f"needs {name}")


def build(folder, compiler):
    """The core's object files, the C check, and a program that names the levels."""
    core = [folder / f"{path.stem}.o" for path in SOURCES]
    for source, target in zip(SOURCES, core, strict=True):
        run(compiler, "-O3", "-Wall", "-Wextra", "-Werror", "-c", source, "-o", target)
    (folder / "levels.c").write_text(LEVELS)
    check = link(folder / "check", compiler, CHECK, *core)
    return core, check, link(folder / "levels", compiler, folder / "levels.c", *core)


def link(program, compiler, *parts):
    run(compiler, "-O3", f"-I{ROOT / 'csrc'}", *parts, "-lm", "-pthread", "-o", program)
    return program


def passes(output, least):
    last = re.fullmatch(r"(\d+) passed, 0 failed", output.splitlines()[-1])
    assert last, output
    assert int(last[1]) >= least, output


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this is one: tests/test_c_core.py checks it")
    need(ARM_CC, "qemu-aarch64")
    if not ARM_ROOT.is_dir():
        pytest.skip(f"needs the C library for 64-bit ARM in {ARM_ROOT}")
    return build(tmp_path_factory.mktemp("arm"), ARM_CC)


def on_arm(cpu, *command):
    return run("qemu-aarch64", "-L", ARM_ROOT, "-cpu", cpu, *command)


def test_arm_gives_the_bits_of_x86(arm):
    """The fingerprint is one constant of the check, so that what passes here and on x86-64 is equal."""
    _, check, levels = arm
    assert on_arm("max", levels).split() == ["scalar", "neon"]
    passes(on_arm("max", check, "--fingerprint"), 2)
    passes(on_arm("max", check, "--brief"), 1000)  # make check-arm: more


def test_arm_without_dot_product_runs_plain_c(arm):
    _, check, levels = arm
    assert on_arm("cortex-a72", levels).split() == ["scalar"]
    passes(on_arm("cortex-a72", check, "--fingerprint"), 1)


def test_clang_makes_the_same_kernels_for_arm(arm):
    """Macs are built with clang, which has its own way to name an instruction set."""
    need(CLANG)
    core, check, _ = arm
    target = check.with_name("clang_neon.o")
    flags = ["--target=aarch64-linux-gnu", "-isystem", ARM_ROOT / "include", "-O3", "-Wall", "-Wextra", "-Werror"]
    run(CLANG, *flags, "-c", ROOT / "csrc" / "kernels_neon.c", "-o", target)
    others = [path for path in core if path.stem != "kernels_neon"]
    passes(on_arm("max", link(check.with_name("check_clang"), ARM_CC, CHECK, *others, target), "--fingerprint"), 2)


@pytest.fixture(scope="module")
def x86(tmp_path_factory):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("this is no x86-64")
    need("qemu-x86_64")
    return build(tmp_path_factory.mktemp("x86"), CC)


@pytest.mark.parametrize(("cpu", "expected"), [("Haswell-noTSX", ["scalar", "avx2"]), ("Nehalem", ["scalar"])])
def test_older_x86_runs_only_what_it_has(x86, cpu, expected):
    """Neither processor has AVX-512, and qemu would not run it; the second has not even AVX."""
    _, check, levels = x86
    assert run("qemu-x86_64", "-cpu", cpu, levels).split() == expected
    passes(run("qemu-x86_64", "-cpu", cpu, check, "--fingerprint"), len(expected))


def test_code_for_avx2_has_no_instruction_of_avx512(x86):
    """What the run above did not reach: no wider or further register, no mask."""
    need("objdump")
    further = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|2\d|3[01])\b")
    found = {path.stem for path in x86[0] if further.search(run("objdump", "-d", "--no-show-raw-insn", path))}
    assert found == {path.stem for path in SOURCES if path.stem.startswith("kernels_avx512")}
