# SPDX-License-Identifier: Apache-2.0
"""Wishes that a text shall fulfil, and what to do when they cannot all be had."""

from fastlm.goals.conflicts import ConflictError, Verdict, check
from fastlm.goals.files import read_goals
from fastlm.goals.kinds import Deadline, Exclude, Goal, Include, Length, Matches, Novel
from fastlm.goals.methods import Experts, Fudge, Specific
from fastlm.goals.soft import Brief, Custom, Diverse, Label, Like, Likely, Unlike
from fastlm.goals.tradeoffs import Search, Tradeoff, hypervolume
from fastlm.goals.writing import Outcome

__all__ = [
    "Brief",
    "ConflictError",
    "Custom",
    "Deadline",
    "Diverse",
    "Exclude",
    "Experts",
    "Fudge",
    "Goal",
    "Include",
    "Label",
    "Length",
    "Like",
    "Likely",
    "Matches",
    "Novel",
    "Outcome",
    "Search",
    "Specific",
    "Tradeoff",
    "Unlike",
    "Verdict",
    "check",
    "hypervolume",
    "read_goals",
]
