"""Captions of tables: prompts of video students with what else their file says of them.

A .json, .jsonl, .csv, .tsv or .parquet file with a column `prompt`, or as VBench (`prompt_en`) and VideoPhy-2
(`caption`) call it, or as ``data.columns`` says. Of rows with the same prompt the first counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidalign.data.columns import caption_column, check_columns
from vidalign.data.prompts import GroupedPrompts
from vidalign.data.rows import format_of, is_saved, read_table
from vidalign.data.source import PromptSource
from vidalign.errors import DataError


class Caption(str):
    """A prompt that knows the further columns of its row; equal to the plain text."""

    metadata: Mapping[str, Any]

    def __new__(cls, text: str, metadata: Mapping[str, Any] | None = None) -> Caption:
        caption = super().__new__(cls, text)
        caption.metadata = metadata or {}
        return caption


def metadata_of(prompt: Any) -> Mapping[str, Any]:
    """What the source of a prompt, a caption or an `Example`, says of it beside its text."""
    known: Mapping[str, Any] = getattr(prompt, "metadata", {})
    return known


class TableCaptions(GroupedPrompts):
    """Captions of a table, with its further columns as their metadata."""

    @dataclass
    class Config:
        path: str = ""
        """A .json, .jsonl, .csv, .tsv or .parquet file, or a folder of `Dataset.save_to_disk`."""
        columns: dict[str, str] = field(default_factory=dict)
        """``{prompt: NAME}``, the column of the captions; see `data.columns`, which it replaces."""

        def __post_init__(self) -> None:
            check_columns(self.columns)

    @classmethod
    def listed(cls, argument: str, columns: Mapping[str, str] | None = None) -> list[str]:  # type: ignore[override]
        return list(dict.fromkeys(caption for _, caption in cls.placed(argument, columns=columns)))

    @classmethod
    def placed(cls, argument: str, **settings: Any) -> Iterator[tuple[str, Caption]]:
        """(place, caption) of every row; `DataError` for a row without one."""
        if not is_saved(argument) and not (format_of(argument) and Path(argument).is_file()):
            raise DataError(
                f"the prompt file {argument} cannot be read", why="there is no such file", fix="check the path"
            )
        rows = read_table(argument)
        if not len(rows):
            raise DataError(f"the prompt file {argument} holds no prompt", fix="write one prompt a row")
        columns = settings.get("columns") or {}
        if unused := next((name for name in columns if name != "prompt"), ""):
            why = "a caption is a text; the further columns go along under their own names"
            raise DataError(
                "captions are read by their prompt alone", where=f"data.columns.{unused}", why=why, fix="delete it"
            )
        column = caption_column(rows.column_names, columns, argument)
        for index in range(len(rows)):
            row = rows[index]
            text, place = row.pop(column), f"{argument}, row {index}"
            if not isinstance(text, str) or not text.strip():
                raise DataError("a row cannot be used", where=place, why=f"its prompt is {text!r}", fix="leave it out")
            yield place, Caption(text.strip(), row)

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1, columns: Mapping[str, str] | None = None) -> PromptSource:
        return cls([cls.listed(argument, columns)], seed, batch)
