"""Examples of a language student from tables, read by `datasets`.

A .json, .jsonl, .csv or .parquet file, or ``datasets:NAME`` or ``datasets:NAME:SPLIT`` of the hub or a folder. Columns:
prompt; privileged, images, answer, response where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from vidalign.data.examples import Example
from vidalign.data.paths import inside
from vidalign.data.prompts import GroupedPrompts
from vidalign.data.source import TABLES, PromptSource
from vidalign.errors import DataError, first_line
from vidalign.reading import regular


class TableExamples(PromptSource):
    """Rows of a table file, shuffled anew in every epoch."""

    gives = "examples"
    judges: ClassVar[dict[str, dict[str, Any]]] = {"exact_match": {}}

    def __init__(self, rows: Any, seed: int, where: str, batch: int = 1) -> None:
        if "prompt" not in rows.column_names:
            raise DataError(
                "the data have no column 'prompt'",
                where=where,
                why=f"columns: {', '.join(rows.column_names)}",
                fix="rename it",
            )
        if not len(rows):
            raise DataError("the data hold no row", where=where, fix="write one question a row")
        self.rows, self.where = rows, where
        order: Any = [range(len(rows))]
        self.order = GroupedPrompts(order, seed, batch)

    @classmethod
    def listed(cls, argument: str) -> None:
        if Path(argument).suffix not in TABLES or not Path(argument).is_file():
            raise DataError(f"there are no examples {argument!r}", why="there is no such file", fix="check the path")

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> TableExamples:
        cls.listed(argument)
        kind = TABLES[Path(argument).suffix]
        return cls(_load(argument, kind, data_files=argument, split="train"), seed, argument, batch)

    @classmethod
    def placed(cls, argument: str) -> Iterator[tuple[str, Any]]:
        yield from cls.open(argument, 0).questions()

    def questions(self) -> Iterator[tuple[str, Example]]:
        """(place, example) of every row, its pictures left out."""
        kept = [name for name in self.rows.column_names if name != "images"]
        texts = TableExamples(self.rows.select_columns(kept), 0, self.where)
        return ((f"{self.where}, row {index}", texts.row(index)) for index in range(len(texts)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> Example:
        index: Any = self.order[sample]
        return self.row(index)

    def first(self, count: int) -> list[Example]:
        """The first rows, in the order of the table."""
        return [self.row(index) for index in range(min(count, len(self)))]

    def row(self, index: int) -> Example:
        """Row `index` of the table; `DataError` when its prompt is no text."""
        values: Mapping[str, Any] = self.rows[index]
        if not isinstance(values["prompt"], str) or not values["prompt"].strip():
            raise DataError(
                "a prompt is no text",
                where=f"{self.where}, row {index}",
                why=repr(values["prompt"])[:60],
                fix="every row needs a question",
            )
        given = values.get("images") or []
        images = tuple(_picture(item, self.where) for item in (given if isinstance(given, list) else [given]))
        entries = [values.get(name) for name in ("privileged", "answer", "response")]
        hint, answer, response = ("" if value is None else str(value) for value in entries)
        return Example(values["prompt"], hint, images, answer, response)


class HubTable(TableExamples):
    """A data set of the hub or of a folder: ``datasets:NAME`` or ``datasets:NAME:SPLIT``."""

    argument = "source"

    @classmethod
    def listed(cls, argument: str) -> None:
        """The hub is not contacted."""

    @classmethod
    def placed(cls, argument: str) -> Iterator[tuple[str, Any]]:
        return iter(())

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> HubTable:
        name, _, split = argument.partition(":")
        return cls(_load(f"datasets:{argument}", name, split=split or "train"), seed, f"datasets:{argument}", batch)


def _load(where: str, name: str, **options: Any) -> Any:
    """Rows through `datasets`; `DataError` naming the source for what cannot be read."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "tables are read by the package datasets",
            where=where,
            why="it is not installed",
            fix="pip install 'vidalign[datasets]'",
        ) from error
    try:
        return datasets.load_dataset(name, **options)
    except (OSError, ValueError) as error:
        raise DataError(
            "the table cannot be read",
            where=where,
            why=first_line(error),
            fix="check its name, split and format",
        ) from error


def _picture(item: Any, where: str) -> Any:
    """A PIL picture of what a table holds: a picture, or the path of a file below the folder of the table."""
    from PIL import Image

    if isinstance(item, str):
        try:
            item = Image.open(regular(inside(Path(where) if Path(where).is_dir() else Path(where).parent, item)))
        except (OSError, ValueError) as error:
            raise DataError("a picture cannot be read", where=where, why=str(error)) from error
    return item.convert("RGB")
