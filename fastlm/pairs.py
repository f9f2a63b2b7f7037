# SPDX-License-Identifier: Apache-2.0
"""Files of pairs: a source, and the text that was written for it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from fastlm.tokenizer import each_path, read_text


def read_pairs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], columns: tuple[int, int] = (0, 1)
) -> list[tuple[str, str]]:
    """The pairs of tab-separated UTF-8 files without a header, ``.gz`` allowed: a line each, of which two columns are
    taken.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        Naming the file and the line: fewer columns, an empty text, or no line at all.
    """
    files = each_path(paths)
    if min(columns) < 0:
        raise ValueError("columns: there is none before the first, which is 0 (1 on the command line)")
    needed, found = max(columns) + 1, []
    for file in files:
        lines = read_text(file).split("\n")  # other marks that Unicode ends a line with are text
        for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
            fields = line.split("\t")
            if len(fields) < needed:
                wanted = f"expected at least {needed} columns with tabs between them"
                raise ValueError(f"{file}, line {number}: {wanted}, found {len(fields)}")
            source, text = (fields[column].strip() for column in columns)
            if not source or not text:
                raise ValueError(f"{file}, line {number}: the {'source' if not source else 'text'} is empty")
            found.append((source, text))
    if not found:
        raise ValueError(f"{', '.join(map(str, files)) or 'pairs'}: no pairs found")
    return found
