# SPDX-License-Identifier: Apache-2.0
"""What fastlm means to reach: by how much it must beat the best peer, and whether it does.

The best peer of a line is the fastest form of another engine whose weights are as precise as fastlm's or more so. A
line is met by its ratio, or by coming so near to what the hardware allows that the ratio cannot be the engine's fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compare import Figures, best_peer, limit_us, ratio
from harness import OURS
from workloads import WORKLOADS

NEAR_THE_LIMIT = 0.85
"""Of what the hardware allows."""

INT4_OVER_INT8 = 1.35
"""Where the int8 model is larger than twice a core's L2 cache: there bytes decide, and int4 has about half of them."""

_COLUMNS = (("f32", 1), ("int8", 1), ("int8", 2))  # precision of fastlm, threads
_ONE_SEQUENCE = {
    "char": (1.9, 2.8, 2.8),
    "smiles": (1.4, 1.5, 1.5),
    "ptb-medium": (1.4, 1.25, 1.5),
    "bpe-32k": (1.1, 1.15, 1.6),
    "wt2-large": (1.1, 1.15, 1.4),
}
_BATCH_8 = dict.fromkeys(WORKLOADS, (1.5, 1.15, 1.15)) | dict.fromkeys(("bpe-32k", "wt2-large"), (1.5, 1.6, 1.6))
_BATCH_64 = dict.fromkeys(WORKLOADS, (1.0, 1.1, 1.1))
_TASK = (2.0, 3.0, 3.0)
_BARE = ("LiteRT int8 invoke alone", 1.3)


@dataclass(frozen=True)
class Target:
    section: str
    point: str  # of the section
    precision: str
    wanted: float
    against: str | None = None  # the best peer, if not named


@dataclass(frozen=True)
class Verdict:
    target: Target
    against: str
    ratio: float
    of_limit: float | None

    @property
    def met(self) -> bool:
        return self.ratio >= self.target.wanted or (self.of_limit or 0) >= NEAR_THE_LIMIT


def targets() -> Iterator[Target]:
    for batch, wanted in ((1, _ONE_SEQUENCE), (8, _BATCH_8), (64, _BATCH_64)):
        for workload, ratios in wanted.items():
            for (precision, threads), least in zip(_COLUMNS, ratios, strict=True):
                point = f"{workload}, batch {batch}, {threads}T"
                yield Target("decode" if batch == 1 else "batch", point, precision, least)
    yield Target("decode", "char, batch 1, 1T", "int8", _BARE[1], _BARE[0])
    for (precision, threads), least in zip(_COLUMNS, _TASK, strict=True):
        yield Target("task", f"ptb-medium, {threads}T", precision, least)


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """Of all targets that were measured."""
    found = []
    for target in (*targets(), *_int4_targets(report)):
        figures = report["sections"].get(target.section, {}).get(target.point)
        if figures and (verdict := _verdict(target, figures)):
            found.append(verdict)
    return found


def _verdict(target: Target, figures: Figures) -> Verdict | None:
    ours, against = f"{OURS} {target.precision}", target.against or best_peer(figures, target.precision)
    if not against or against not in figures["forms"] or ours not in figures["forms"]:
        return None
    limit = limit_us(figures, target.precision)
    of_limit = limit / figures["forms"][ours]["median_us"] if limit else None
    return Verdict(target, against, ratio(figures, against, ours), of_limit)


def _int4_targets(report: dict[str, Any]) -> Iterator[Target]:
    L2 = report["about"]["caches"].get("L2", 0)
    for workload in WORKLOADS.values():
        if workload.streamed_bytes("int8") > 2 * L2:
            yield Target("decode", f"{workload.name}, batch 1, 1T", "int4", INT4_OVER_INT8, f"{OURS} int8")
