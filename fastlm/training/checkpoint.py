# SPDX-License-Identifier: Apache-2.0
"""One file that holds all of a run, replaced in one step so that a kill at any moment loses little."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastlm.format import atomic

Arrays: TypeAlias = dict[str, list[npt.NDArray[Any]]]

_VERSION = 1


def save(path: Path, meta: dict[str, Any], groups: Arrays) -> None:
    """Write ``meta`` (JSON) and named lists of arrays; the old file stays until the new one is on disk.

    Raises
    ------
    OSError
        If it cannot be written; an earlier checkpoint is then still there.
    """
    text = json.dumps({"version": _VERSION, **meta})
    arrays: dict[str, Any] = {"meta": np.frombuffer(text.encode(), np.uint8)}
    arrays |= {f"{name}/{n:03d}": a for name, group in groups.items() for n, a in enumerate(group)}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> tuple[dict[str, Any], Arrays]:
    """What `save` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a checkpoint of this version.
    """
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
            meta: dict[str, Any] = json.loads(file["meta"].tobytes())
            groups: Arrays = {}
            for key in sorted(set(file.files) - {"meta"}):
                groups.setdefault(key.split("/")[0], []).append(file[key])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path}: not a fastlm checkpoint ({e})") from e
    if meta.get("version") != _VERSION:
        raise ValueError(f"{path}: expected checkpoint version {_VERSION}, found {meta.get('version')}")
    return meta, groups
