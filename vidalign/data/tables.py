"""Examples of a language student from tables.

A .json, .jsonl, .csv, .tsv or .parquet file (text formats also compressed), a folder of `Dataset.save_to_disk`, or
``datasets:NAME``, ``datasets:NAME:SPLIT``, ``datasets:NAME:CONFIG:SPLIT`` of the hub or a folder. Columns: prompt, a
text or a conversation; privileged, images (or image), answer, response where there are any. ``data.columns`` gives
other names. Further columns are the metadata of an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from vidalign.data import hub
from vidalign.data.cells import question, text_of
from vidalign.data.columns import check_columns, used_columns
from vidalign.data.examples import Example
from vidalign.data.graders import Chosen, make_grader
from vidalign.data.pictures import pictures_of
from vidalign.data.prompts import GroupedPrompts
from vidalign.data.rows import ListedRows, Row, Rows, format_of, is_saved, read_table
from vidalign.data.source import PromptSource
from vidalign.data.streams import Stream
from vidalign.errors import DataError


class RowReader:
    """Rows of a table to examples. used: the column of each part; where: the table in messages; grader: its task's."""

    def __init__(self, used: Mapping[str, str], where: str, folder: Path, grader: Chosen) -> None:
        self.used, self.where, self.folder = used, where, folder
        self.grader = make_grader(grader) if grader else None

    def example(self, row: Row, index: int, pictures: bool = True) -> Example:
        """The example of row `index`; `DataError` when its prompt is no text or a picture cannot be shown."""
        cells = {name: row.get(column) for name, column in self.used.items()}
        try:
            asked = question(cells["prompt"])
            images = pictures_of(cells.get("images"), self.folder) if pictures else ()
        except ValueError as error:
            raise DataError(
                "a row cannot be used",
                where=f"{self.where}, row {index}",
                why=str(error),
                fix="repair it, or leave it out",
            ) from error
        hint, answer, response = (text_of(cells.get(name)) for name in ("privileged", "answer", "response"))
        metadata = {name: value for name, value in row.items() if name not in self.used.values()}
        known = Example(asked.prompt, hint, images, answer, response or asked.response)
        return replace(known, before=asked.before, grader=self.grader, metadata=metadata)


class TableExamples(PromptSource):
    """Rows of a table file, shuffled anew in every epoch."""

    gives = "examples"
    as_captions = "caption_table"
    judges: ClassVar[dict[str, dict[str, Any]]] = {"exact_match": {}}

    @dataclass
    class Config:
        path: str = ""
        """A .json, .jsonl, .csv, .tsv or .parquet file, or a folder of `Dataset.save_to_disk`."""
        columns: dict[str, str] = field(default_factory=dict)
        """The column of each part of an example; see `data.columns`, which it replaces."""
        grader: str | dict[str, Any] = ""
        """What compares responses with the answers; see `data.grader`, which it replaces."""

        def __post_init__(self) -> None:
            check_columns(self.columns)

    def __init__(
        self,
        rows: Rows,
        seed: int,
        where: str,
        batch: int = 1,
        columns: Mapping[str, str] | None = None,
        grader: Chosen = "",
    ) -> None:
        if not len(rows):
            raise DataError("the data hold no row", where=where, fix="write one question a row")
        self.rows, self.where = rows, where
        place = Path(where.removeprefix("datasets:").partition(":")[0] if where.startswith("datasets:") else where)
        used = used_columns(rows, columns or {}, where)
        self.reader = RowReader(used, where, place if place.is_dir() else place.parent, grader)
        order: Any = [range(len(rows))]
        self.order = GroupedPrompts(order, seed, batch)

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> None:
        if not is_saved(argument) and not (format_of(argument) and Path(argument).is_file()):
            raise DataError(f"there are no examples {argument!r}", why="there is no such file", fix="check the path")

    @classmethod
    def open(
        cls,
        argument: str,
        seed: int,
        batch: int = 1,
        columns: Mapping[str, str] | None = None,
        grader: Chosen = "",
    ) -> TableExamples:
        cls.listed(argument)
        return cls(read_table(argument), seed, argument, batch, columns, grader)

    @classmethod
    def placed(cls, argument: str, **settings: Any) -> Iterator[tuple[str, Any]]:
        yield from cls.open(argument, 0, **settings).questions()

    def questions(self) -> Iterator[tuple[str, Example]]:
        """(place, example) of every row, its pictures left out."""
        rows: Any = self.rows
        if hasattr(rows, "remove_columns"):  # so that no picture is decoded
            rows = rows.remove_columns([c for n, c in self.reader.used.items() if n == "images"])
        examples = (self.reader.example(rows[index], index, pictures=False) for index in range(len(rows)))
        return ((f"{self.where}, row {index}", example) for index, example in enumerate(examples))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> Example:
        index: Any = self.order[sample]
        return self.row(index)

    def first(self, count: int) -> list[Example]:
        """The first rows, in the order of the table."""
        return [self.row(index) for index in range(min(count, len(self)))]

    def row(self, index: int) -> Example:
        """Row `index` of the table; `DataError` when it cannot be used."""
        return self.reader.example(self.rows[index], index)


class HubTable(TableExamples):
    """A data set of the hub or of a folder: ``datasets:NAME``, also with ``:SPLIT`` or ``:CONFIG:SPLIT``."""

    argument = "source"
    as_captions = ""

    @dataclass
    class Config:
        source: str = ""
        """``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT``; NAME is on the hub, or a folder."""
        columns: dict[str, str] = field(default_factory=dict)
        """The column of each part of an example; see `data.columns`, which it replaces."""
        grader: str | dict[str, Any] = ""
        """What compares responses with the answers; see `data.grader`, which it replaces."""
        streaming: bool = False
        """Read rows as they are needed instead of downloading all first. They are shuffled within a window."""

        def __post_init__(self) -> None:
            check_columns(self.columns)

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> None:
        """The hub is not contacted."""
        hub.named(argument)

    @classmethod
    def placed(cls, argument: str, **settings: Any) -> Iterator[tuple[str, Any]]:
        return iter(())

    @classmethod
    def open(  # type: ignore[override]
        cls,
        argument: str,
        seed: int,
        batch: int = 1,
        columns: Mapping[str, str] | None = None,
        grader: Chosen = "",
        streaming: bool = False,
    ) -> PromptSource:
        where = f"datasets:{argument}"
        if not streaming:
            return cls(hub.load(argument), seed, where, batch, columns, grader)
        return StreamedExamples(Stream(hub.stream(argument), seed, where), where, columns, grader)


class StreamedExamples(PromptSource):
    """Rows of a data set that is read as it is needed."""

    gives = "examples"
    judges = TableExamples.judges

    def __init__(self, rows: Stream, where: str, columns: Mapping[str, str] | None, grader: Chosen) -> None:
        self.rows = rows
        head = rows.first(1)
        used = used_columns(ListedRows(head), columns or {}, where)
        self.reader = RowReader(used, where, Path(where.removeprefix("datasets:").partition(":")[0]), grader)

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> PromptSource:
        return HubTable.open(argument, seed, batch, streaming=True)

    def __getitem__(self, sample: int) -> Example:
        return self.reader.example(self.rows[sample], sample)

    def first(self, count: int) -> list[Example]:
        """The first rows, in the order of the data set."""
        return [self.reader.example(row, index) for index, row in enumerate(self.rows.first(count))]
