# SPDX-License-Identifier: Apache-2.0
"""Goals in a file, JSON or TOML: ``{"goals": [{"include": ["sea"]}, {"length": "words", "max": 20}]}``."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastlm.goals.kinds import Deadline, Exclude, Goal, Include, Length, Matches, Novel
from fastlm.goals.soft import Brief, Diverse, Label, Like, Likely, Unlike
from fastlm.novelty import load_index

_KINDS: dict[str, Any] = {
    "include": Include,
    "exclude": Exclude,
    "length": Length,
    "deadline": Deadline,
    "diverse": Diverse,
    "brief": Brief,
}
_FORMS = ("regex", "json_schema", "grammar")
_OTHERS = ("novel", "likely", "like", "unlike", "label")
_ALL = (*_KINDS, *_FORMS, *_OTHERS)


def read_goals(path: str | os.PathLike[str]) -> list[Goal]:
    """The goals of a file.

    Each is a table. One of its keys says what it asks for: "include", "exclude" (words), "length" (a unit), "deadline"
    (milliseconds), "regex", "json_schema", "grammar", "novel" (tokens, with the "corpus", an index's file); or "likely"
    (true), "like", "unlike" (a model's file), "label" (its name, with the "classifier"'s file), "diverse" (words of a
    run), "brief" (a unit). Others are what the goal takes besides, as "case", "min" and "max", or "weight", "at_least"
    and "priority". Files are looked for beside this one.

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
    except RecursionError:
        raise ValueError(f"{path}: it is nested too deeply") from None
    rows = data.get("goals") if isinstance(data, Mapping) else data
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list 'goals' with at least one goal")
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_goal(row, Path(path).parent))
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


def _goal(row: Any, beside: Path) -> Goal:
    if not isinstance(row, Mapping):
        raise TypeError(f"expected a table, found {row!r:.60}")
    kinds = [key for key in row if key in _ALL]
    if len(kinds) != 1:
        expected = ", ".join(_ALL)
        raise ValueError(f"expected one of {expected}, found {' and '.join(kinds) or 'none'} in {', '.join(row)}")
    [kind] = kinds
    rest = {key: value for key, value in row.items() if key != kind}
    if kind in _FORMS:
        return _made(Matches, **row)
    return _other(kind, row[kind], rest, beside) if kind in _OTHERS else _made(_KINDS[kind], row[kind], **rest)


def _made(kind: Any, *values: Any, **rest: Any) -> Goal:
    known = [*inspect.signature(kind).parameters][len(values) :]
    for key in rest:
        if key not in known:
            others = ", ".join(name for name in known if name not in _FORMS)
            raise ValueError(f"{key}: expected {others or 'nothing'} besides")
    goal: Goal = kind(*values, **rest)
    return goal


def _other(kind: str, value: Any, rest: dict[str, Any], beside: Path) -> Goal:
    """Goals that speak of models and corpora."""
    if kind == "novel":
        if not isinstance(corpus := rest.pop("corpus", None), str):
            raise ValueError("novel: expected the 'corpus', an index's file, beside it")
        return _made(Novel, value, load_index(beside / corpus), **rest)
    if kind == "likely":
        if value is not True:
            raise ValueError(f"likely={value!r:.60}: expected true, or leave it out")
        return _made(Likely, **rest)
    if kind == "label":
        if "classifier" not in rest:
            raise ValueError("label: expected the 'classifier', a model's file, beside it")
        return _made(Label, _loaded_model(rest.pop("classifier"), beside), value, **rest)
    return _made(Like if kind == "like" else Unlike, _loaded_model(value, beside), **rest)


def _loaded_model(name: Any, beside: Path) -> Any:
    from fastlm.model import BUNDLED, load

    if not isinstance(name, str):
        raise TypeError(f"expected a model's file, found {name!r:.60}")
    return load(name if name in BUNDLED else str(beside / name))
