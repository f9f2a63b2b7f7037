# SPDX-License-Identifier: Apache-2.0
"""Sampling settings with which a model's texts are as varied as human ones: tried, not guessed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastlm.report.passages import Passage, decoded, written
from fastlm.report.statistics import Comparison, Human, misfit

if TYPE_CHECKING:
    from fastlm.model import Model

    Settings = Mapping[str, float]

TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)

CUTS: tuple[dict[str, float], ...] = (
    {},
    {"top_p": 0.98},
    {"top_p": 0.95},
    {"top_p": 0.9},
    {"min_p": 0.02},
    {"min_p": 0.05},
)

NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""So that nothing of what the model file recommends acts besides."""


@dataclass(frozen=True)
class Fit:
    """Settings that were found, and what they change on prompts that they were not chosen by.

    Attributes
    ----------
    before, after : dict
        Settings: the model's own, and the new ones.
    figures, fitted : list of Comparison
        With each of them.
    nearer : int
        Of how many figures the distance from human text became smaller.
    tried : int
        Settings that were compared.
    """

    before: dict[str, float]
    after: dict[str, float]
    figures: list[Comparison]
    fitted: list[Comparison]
    nearer: int
    tried: int

    @property
    def helps(self) -> bool:
        """Whether texts are nearer to human ones in all."""
        return misfit(self.fitted) < misfit(self.figures)


def compared(model: Model, human: Human, prompts: Sequence[Passage], seed: int, settings: Settings) -> list[Comparison]:
    """What the model writes behind prompts with these settings, beside human text."""
    return human.compared([decoded(model, one) for one in written(model, prompts, seed, **settings)])


def fit(
    model: Model,
    known: tuple[Human, Sequence[Passage]],
    unseen: tuple[Human, Sequence[Passage]],
    before: Settings,
    seed: int,
    progress: Callable[[str], None],
) -> Fit:
    """The best of some settings on prompts, with what is human behind them, and what that does on others."""
    ways = [{**NEUTRAL, "temperature": t, **cut} for t, cut in itertools.product(TEMPERATURES, CUTS)]
    ways.append({**NEUTRAL, **before})
    scores = []
    for n, way in enumerate(ways, 1):
        progress(f"sampling settings: {n} of {len(ways)}")
        scores.append(misfit(compared(model, *known, seed, way)))
    best = ways[min(range(len(ways)), key=scores.__getitem__)]
    figures, fitted = (compared(model, *unseen, seed + 1, way) for way in (before, best))
    nearer = sum(abs(new.distance) < abs(old.distance) for old, new in zip(figures, fitted, strict=True))
    return Fit(dict(before), best, figures, fitted, nearer, len(ways))
