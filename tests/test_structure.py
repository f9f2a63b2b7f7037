# SPDX-License-Identifier: Apache-2.0
"""Keeps the layers of the code apart, and `import fastlm` small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
C = sorted((ROOT / "csrc").glob("*.[ch]"))
PYTHON = sorted((ROOT / "fastlm").rglob("*.py"))


def lines(path, pattern):
    return [line for line in path.read_text().splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize("path", C, ids=lambda p: p.name)
def test_c_layers(path):
    intrinsics = lines(path, r"#include <(immintrin|x?mmintrin|arm_neon|nmmintrin)\.h>")
    assert not intrinsics or path.name.startswith("vec_")
    vocabulary = lines(path, r'#include "(vec_|kernels_template)')
    assert not vocabulary or re.match(r"kernels_\w+\.c", path.name)
    assert not lines(path, r"Python\.h")
    assert not lines(path, r"\b(printf|puts|exit|abort|assert)\s*\(")
    if path.name not in ("kernels.h", "cpu.c"):
        assert not lines(path, r"\bfl_kernels_(scalar|avx|neon)")
    if path.name != "cpu.c":
        assert not lines(path, r"\bgetenv\b|__builtin_cpu")
    if path.name == "fastlm.h":
        assert lines(path, "#include") == ["#include <stddef.h>", "#include <stdint.h>"]


def test_each_level_only_names_itself():
    for path in ROOT.glob("csrc/kernels_*.c"):
        assert len(path.read_text().splitlines()) <= 20


def test_the_mirror_names_every_public_function():
    header = (ROOT / "csrc/fastlm.h").read_text()
    functions = set(re.findall(r"\b(fl_\w+)\(", header))
    assert functions
    assert functions == set(re.findall(r"\b(fl_\w+)\(", (ROOT / "csrc/capi.pxd").read_text()))


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_layers(path):
    inside = "training" in path.parts
    heavy = lines(path, r"^\s*(import|from) (tensorflow|keras)\b")
    assert inside or not [line for line in heavy if not line.startswith(" ")]
    assert inside or not lines(path, r"^(import|from) fastlm\.training\b")
    assert not lines(path, r"^(import|from) (gguf|tokenizers)\b")
    if path.name not in ("cli.py", "__main__.py"):
        assert not lines(path, r"\bprint\(|sys\.exit")
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0") or not path.read_text()


def test_import_loads_numpy_and_the_engine_only():
    code = (
        "import sys, numpy; before = set(sys.modules); import fastlm\n"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    command = [sys.executable, "-c", code]  # away from the source tree, which would hide the installed package
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert [name for name in found if "cython" not in name] == ["fastlm"]


def test_public_names_exist_and_are_documented():
    import fastlm

    for name in fastlm.__all__:
        assert getattr(fastlm, name).__doc__, name
    assert set(fastlm.__all__) <= set(dir(fastlm))
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        fastlm.generat  # noqa: B018


def test_every_package_is_installed():
    listed = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "fastlm").rglob("__init__.py")}
    assert set(re.findall(r'"([\w.]+)"', listed)) == folders
