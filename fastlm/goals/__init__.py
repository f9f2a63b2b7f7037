# SPDX-License-Identifier: Apache-2.0
"""Wishes that a text shall fulfil, and what to do when they cannot all be had."""

from fastlm.goals.conflicts import ConflictError, Verdict, check
from fastlm.goals.files import read_goals
from fastlm.goals.kinds import Exclude, Goal, Include, Length, Matches

__all__ = ["ConflictError", "Exclude", "Goal", "Include", "Length", "Matches", "Verdict", "check", "read_goals"]
