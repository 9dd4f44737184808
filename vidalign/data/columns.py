"""Which column of a table is what."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign.data.pictures import looks_like_picture
from vidalign.data.rows import Rows
from vidalign.errors import DataError, nearest

OWN = ("prompt", "privileged", "images", "answer", "response")
"""What an example takes from a row, each from the column of its name unless `columns` says another."""
PROMPT = ("prompt", "prompt_en", "caption")
"""Columns of captions: the usual name, and those of VBench and VideoPhy-2."""


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise `ValueError` for an entry that no example has; for a `Config`."""
    for name in columns:
        if name not in OWN:
            close = nearest(name, OWN)
            what = f"did you mean {close!r}?" if close else f"known: {', '.join(OWN)}"
            raise ValueError(f"columns names {name!r}, which no example has; {what}")


def used_columns(rows: Rows, columns: Mapping[str, str], where: str) -> dict[str, str]:
    """The column of each part of an example that this table has; `DataError` for one that it lacks.

    A picture may stand in a column `image` as well. A column that looks like pictures and is not used is reported.
    """
    known = list(rows.column_names)
    for name, column in columns.items():
        if column not in known:
            raise _missing(column, known, where, f"data.columns.{name}")
    used = {name: column for name in OWN if (column := columns.get(name, name)) in known}
    if "images" not in used and "image" in known and "image" not in used.values():
        used["images"] = "image"
    if "prompt" not in used:
        raise _missing("prompt", known, where)
    _report_pictures(rows, used, where)
    return used


def caption_column(names: Sequence[str], columns: Mapping[str, str], where: str) -> str:
    """The column of the captions of a table; `DataError` where it has none."""
    wanted = columns.get("prompt")
    if wanted is not None and wanted not in names:
        raise _missing(wanted, names, where, "data.columns.prompt")
    found = wanted or next((name for name in PROMPT if name in names), None)
    if found is None:
        raise _missing("prompt", names, where)
    return found


def _missing(column: str, known: Sequence[str], where: str, key: str = "") -> DataError:
    close = nearest(column, known)
    fix = f"did you mean {close!r}?" if key and close else "name it in the recipe: data.columns={prompt: NAME}"
    return DataError(
        f"the data have no column {column!r}",
        where=f"{where} ({key})" if key else where,
        why=f"columns: {', '.join(known)}",
        fix=fix,
    )


def _report_pictures(rows: Rows, used: Mapping[str, str], where: str) -> None:
    first: Mapping[str, Any] = rows[0] if len(rows) else {}
    unused = [name for name, cell in first.items() if name not in used.values() and looks_like_picture(cell)]
    for name in unused:
        warnings.warn(
            f"{where}: the column {name!r} looks like pictures and is not used; to show it to the student: "
            f"data.columns={{images: {name}}}",
            stacklevel=2,
        )
