# SPDX-License-Identifier: Apache-2.0
"""The C core without Python: it compiles anywhere, and its own harness and fuzzer pass, plain and sanitized.

FASTLM_FUZZ sets how many hostile files the fuzzer makes (default 100,000)."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc").glob("*.c"))
CHECK = ROOT / "tests" / "c" / "check_kernels.c"
FUZZ = ROOT / "tests" / "c" / "fuzz_format.c"
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CC = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "cc")  # none: an error, no skipped test
CLANG = next((name for name in ("clang", *(f"clang-{n}" for n in range(30, 10, -1))) if shutil.which(name)), None)
COMPILERS = [name for name in dict.fromkeys((CC, CLANG)) if name]
X86 = platform.machine() in ("x86_64", "AMD64")
LIBRARIES = ["-lm", "-lpthread"]


def run(*command, cwd=None):
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, errors="replace", timeout=900
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def passes(output):
    """The last line of a C check; the whole output names the seed if it is not as it should be."""
    last = re.fullmatch(r"(\d+) passed, 0 failed", output.splitlines()[-1])
    assert last, output
    assert int(last[1]) > 1000, output


def build(folder, name, *arguments, compiler=CC):
    program = folder / name
    run(compiler, *arguments, f"-I{ROOT / 'csrc'}", "-o", program, *LIBRARIES)
    return program


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The core, compiled as STYLE demands it can be: one flag for speed and no other."""
    folder = tmp_path_factory.mktemp("objects")
    run(CC, "-O3", "-c", *SOURCES, cwd=folder)
    return {path.stem: path for path in folder.glob("*.o")}


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Object files of the core with the address and undefined-behaviour sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    run(CC, *SANITIZE, "-c", *SOURCES, cwd=folder)
    return sorted(folder.glob("*.o"))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_core_compiles_without_flags_and_without_warnings(tmp_path, compiler):
    run(compiler, "-O3", "-Wall", "-Wextra", "-Werror", "-c", *SOURCES, cwd=tmp_path)
    assert len(list(tmp_path.glob("*.o"))) == len(SOURCES)


def symbols(path, *options):
    return [line.split()[-1].lstrip("_") for line in run("nm", *options, path).splitlines() if line.strip()]


@pytest.mark.skipif(not shutil.which("nm"), reason="no nm")
def test_every_global_symbol_has_the_prefix(objects):
    found = [name for path in objects.values() for name in symbols(path, "-g", "--defined-only")]
    assert "fl_generate" in found
    assert [name for name in found if not name.startswith("fl_")] == []


@pytest.mark.skipif(not shutil.which("nm"), reason="no nm")
def test_core_never_prints_exits_or_locks(objects):
    """Threads, locks and waiting are the business of threads.c and os.c alone."""
    forbidden = re.compile(r"(v?f?printf|puts|putchar|fwrite|perror|exit|abort|signal)(_chk)?$")
    waiting = re.compile(r"(pthread_|sched_|sem_|mtx_|cnd_|thrd_|(nano|u)?sleep|clock_gettime|futex|poll$)")
    for name, path in objects.items():
        used = symbols(path, "-u")
        assert [symbol for symbol in used if forbidden.match(symbol)] == [], name
        assert name in ("threads", "os") or [symbol for symbol in used if waiting.match(symbol)] == [], name
        assert "getenv" not in used or name == "cpu", name
        if name.startswith("kernels_") or name in ("columns", "step", "generate", "sample"):  # runs for every token
            assert not {"malloc", "calloc", "realloc", "free", "mmap", "fl_os_alloc"} & set(used), name


@pytest.mark.skipif(not (X86 and shutil.which("objdump")), reason="no x86-64 objdump")
def test_only_the_kernels_of_a_level_use_its_registers(objects):
    """An old x86-64 runs everything but the levels that it lacks: no VEX or EVEX instruction elsewhere."""
    wide = re.compile(r"%[yz]mm|\tv[a-z0-9]+ +.*%xmm")
    found = {name for name, path in objects.items() if wide.search(run("objdump", "-d", "--no-show-raw-insn", path))}
    assert found == {"kernels_avx2", "kernels_avxvnni", "kernels_avx512", "kernels_avx512vnni"}


@pytest.mark.skipif(not (X86 and shutil.which("objdump")), reason="no x86-64 objdump")
def test_only_vnni_levels_use_its_instructions(objects):
    """A processor may have the wide registers and not these; and a level without them must not be the other by name."""
    found = {name for name, path in objects.items() if re.search(r"vpdpbusd|vpdpwssd", run("objdump", "-d", path))}
    assert found == {"kernels_avxvnni", "kernels_avx512vnni"}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_kernels_and_models_give_the_same_bits(tmp_path, compiler):
    program = build(tmp_path, "check", "-O3", *SOURCES, CHECK, compiler=compiler)
    passes(run(program, "--quick"))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("flags", ["-O0", "-O3 -march=native"])
def test_bits_of_the_numerics_version_hold_whatever_the_flags(tmp_path, compiler, flags):
    """Those of the elementary functions and of models of every dtype, on every level, are written down in the checks.

    A compiler that may use fused multiply-adds must not do so on its own.
    """
    program = build(tmp_path, "check", *flags.split(), *SOURCES, CHECK, compiler=compiler)
    last = run(program, "--fingerprint").splitlines()[-1]
    passed = re.fullmatch(r"(\d+) passed, 0 failed", last)
    assert passed, last
    assert int(passed[1]) > 1  # the functions, and models on each level


def test_kernels_and_models_are_clean_under_sanitizers(tmp_path, sanitized):
    program = build(tmp_path, "check", *SANITIZE, *sanitized, CHECK)
    passes(run(program, "--quick"))


def test_hostile_files_are_refused_or_load_under_sanitizers(tmp_path, sanitized):
    program = build(tmp_path, "fuzz", *SANITIZE, "-DFUZZ_MAIN", *sanitized, FUZZ)
    output = run(program, "--count", os.environ.get("FASTLM_FUZZ", "100000"))
    passes(output)
    files, loaded, refused = map(int, re.search(r"(\d+) files: (\d+) loaded, (\d+) refused", output).groups())
    assert files == loaded + refused
    assert loaded > files // 50  # both ways out are exercised
    assert refused > files // 2
