"""Clips of a table: a parquet file or what ``Dataset.save_to_disk`` wrote, with the columns ``prompt`` and ``video``
(the path of a file, or its bytes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidalign.data.paths import inside
from vidalign.data.rows import read_table
from vidalign.errors import DataError
from vidalign.teachers.clips import Entry


def table_entries(path: Path) -> list[Entry]:
    """A clip of every row; `DataError` for a table that cannot be read or lacks the columns."""
    import datasets
    import pyarrow

    table: Any = read_table(str(path))
    columns = getattr(table, "column_names", None)
    if not isinstance(columns, list) or not {"prompt", "video"} <= set(columns):
        raise DataError(
            "the table has no columns prompt and video",
            where=str(path),
            why=f"it has {columns}",
            fix="save one split with these two columns",
        )
    if isinstance(table.features["video"], datasets.Video):
        table = table.cast_column("video", datasets.Video(decode=False))
    base = path.parent if path.is_file() else path
    names = _file_names(table.data.column("video"))
    packed = not pyarrow.types.is_string(table.data.column("video").type)
    for number, prompt in enumerate(table["prompt"]):
        if not isinstance(prompt, str) or not prompt.strip():
            why = f"its prompt is {prompt!r}"
            raise DataError("a row of the table cannot be used", where=f"{path}, row {number}", why=why, fix="name it")
    empty = _empty_rows(table.data.column("video"))
    return [
        _row(table, number, prompt.strip(), name, base, packed)
        if number not in empty
        else _no_clip(path, number, prompt)
        for number, (prompt, name) in enumerate(zip(table["prompt"], names, strict=True))
    ]


def _empty_rows(column: Any) -> set[int]:
    """The rows of an Arrow column of strings, bytes or ``{bytes, path}`` that hold nothing; no bytes are read."""
    import pyarrow.compute as compute
    import pyarrow.types as kinds

    fields = ("bytes", "path") if kinds.is_struct(column.type) else ("",)
    parts = [compute.struct_field(column, name) if name else column for name in fields]
    sizes = [compute.fill_null(compute.binary_length(part), 0).to_pylist() for part in parts]
    return {number for number, row in enumerate(zip(*sizes, strict=True)) if not any(row)}


def _no_clip(path: Path, number: int, prompt: str) -> Entry:
    def load() -> Path | bytes:
        where = f"{path}, row {number}"
        raise DataError("a row of the table cannot be used", where=where, why="its clip is empty", fix="leave it out")

    return Entry(prompt.strip(), f"row {number}", ".mp4", load)


def _file_names(column: Any) -> list[str]:
    """The path in each row of an Arrow column of strings, bytes or ``{bytes, path}``; no bytes are read."""
    import pyarrow.compute as compute
    import pyarrow.types as kinds

    if kinds.is_struct(column.type):
        column = compute.struct_field(column, "path")
    elif kinds.is_binary(column.type) or kinds.is_large_binary(column.type):
        return [""] * len(column)
    return [name or "" for name in column.to_pylist()]


def _row(table: Any, number: int, prompt: str, name: str, base: Path, packed: bool) -> Entry:
    """A row of a table; its kind is that of its path, mp4 for bare bytes."""

    def load() -> Path | bytes:
        video = table[number]["video"]
        if isinstance(video, dict):
            video = video.get("bytes") or video.get("path")
        if isinstance(video, bytes):
            return video
        try:
            return inside(base, str(video))
        except ValueError as error:
            raise DataError(
                "a row of the table cannot be used",
                where=f"{base}, row {number}",
                why=str(error),
                fix="give paths below the table's folder, or the bytes",
            ) from error

    kind = Path(name).suffix.lower() or ".mp4"
    return Entry(prompt, f"row {number}" + (f" ({name})" if name else ""), kind, load, packed)
