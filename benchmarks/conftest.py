# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from harness import pin_to_one_core


@pytest.fixture
def one_core() -> Iterator[None]:
    """Pin the test to one core."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    pin_to_one_core()
    yield
    if allowed:
        os.sched_setaffinity(0, allowed)
