# SPDX-License-Identifier: Apache-2.0
"""fastlm: one call of `Model.generate` for the whole text; the token loop is inside the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workloads import FIRST_TOKEN, Workload

if TYPE_CHECKING:
    from pathlib import Path

NAME = "fastlm"
MODULES = ("gguf", "fastlm")  # gguf writes the file; it does not run it


class Runner:
    def __init__(self, workload: Workload, directory: Path) -> None:
        import fastlm

        path = directory / f"{workload.name}.gguf"
        fastlm.export(workload.weights, path)
        self._model = fastlm.load(path)  # one thread: version 0.1 has no other

    def tokens(self, count: int) -> list[int]:
        return self._model.generate([FIRST_TOKEN], max_tokens=count, temperature=0.0).token_ids

    def run(self, count: int) -> None:
        self.tokens(count)
