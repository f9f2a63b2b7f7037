# SPDX-License-Identifier: Apache-2.0
"""Threads of the C core: many callers, forks, fewer cores than asked for; no system call for a token, no data race."""

import re

import pytest

from test_c_core import CC, ROOT, SOURCES, build, run

CHECK = ROOT / "tests" / "c" / "check_threads.c"


@pytest.mark.parametrize("flags", [["-O2"], ["-O1", "-g", "-fsanitize=thread"]], ids=["plain", "thread-sanitizer"])
def test_threads_share_work_without_a_trace(tmp_path, flags):
    program = build(tmp_path, "check", *flags, *SOURCES, CHECK, "-pthread", compiler=CC)
    assert re.fullmatch(r"\d\d+ passed, 0 failed", run(program).splitlines()[-1])
