# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from harness import cores


@pytest.fixture
def one_core() -> Iterator[None]:
    """Pin the test to one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores(1))
    yield
    os.sched_setaffinity(0, allowed)
