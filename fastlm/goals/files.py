# SPDX-License-Identifier: Apache-2.0
"""Goals in a file, JSON or TOML: ``{"goals": [{"include": ["sea"]}, {"length": "words", "max": 20}]}``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastlm.goals.kinds import Exclude, Goal, Include, Length, Matches

_KINDS: dict[str, Any] = {"include": Include, "exclude": Exclude, "length": Length}
_FORMS = ("regex", "json_schema", "grammar")


def read_goals(path: str | os.PathLike[str]) -> list[Goal]:
    """The goals of a file.

    Each is a table whose first key says what it asks for: "include", "exclude" (words), "length" (a unit), "regex",
    "json_schema" or "grammar"; others are what the goal takes besides, as "case", "min" and "max".

    Raises
    ------
    ValueError
        Naming the file and the goal that cannot be read.
    OSError
        The file cannot be read.
    """
    try:
        data = _loaded(Path(path))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    rows = data.get("goals") if isinstance(data, Mapping) else data
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list 'goals'")
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_goal(row))
        except (TypeError, ValueError) as e:
            raise ValueError(f"{path}: goal {number}: {e}") from None
    return found


def _loaded(path: Path) -> Any:
    if path.suffix != ".toml":
        return json.loads(path.read_text("utf-8"))
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(path.read_text("utf-8"))
    raise ValueError("TOML is read by Python 3.11 and newer: write JSON")


def _goal(row: Any) -> Goal:
    if not isinstance(row, Mapping):
        raise TypeError(f"expected a table, found {row!r:.60}")
    kinds = [key for key in row if key in (*_KINDS, *_FORMS)]
    if len(kinds) != 1:
        expected = ", ".join((*_KINDS, *_FORMS))
        raise ValueError(f"expected one of {expected}, found {' and '.join(kinds) or 'none'} in {', '.join(row)}")
    [kind] = kinds
    rest = {key: value for key, value in row.items() if key != kind}
    goal: Goal = Matches(**row) if kind in _FORMS else _KINDS[kind](row[kind], **rest)
    return goal
