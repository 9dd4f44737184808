"""Where the examples of a language student come from: an embedded world, or tables through `datasets`.

``tokens:SPLIT`` and ``pictures:SPLIT`` are endless (sample n is a pure function of seed and n). Everything else is a
table: a .json, .jsonl, .csv or .parquet file, or ``datasets:NAME`` or ``datasets:NAME:SPLIT`` of the hub or a folder.
Its columns: prompt; privileged, images, answer, response where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from vidalign.data.examples import Example
from vidalign.data.paths import inside
from vidalign.data.prompts import PromptSource
from vidalign.errors import DataError
from vidalign.reading import regular

WORLDS = ("tokens", "pictures")
FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


class ExampleSource(Protocol):
    """Example of sample n of a run."""

    def __getitem__(self, sample: int) -> Example: ...


class WorldExamples:
    """An endless split of an embedded world."""

    def __init__(self, draw: Callable[[str, int, int, str], Example], split: str, seed: int, form: str) -> None:
        self.draw, self.split, self.seed, self.form = draw, split, seed, form

    def __getitem__(self, sample: int) -> Example:
        return self.draw(self.split, self.seed, sample, self.form)


class TableExamples:
    """Rows of a table, shuffled anew in every epoch."""

    def __init__(self, rows: Any, seed: int, where: str, batch: int = 1) -> None:
        if "prompt" not in rows.column_names:
            raise DataError("the data have no column 'prompt'", where=where,
                            why=f"columns: {', '.join(rows.column_names)}", fix="rename it")  # fmt: skip
        if not len(rows):
            raise DataError("the data hold no row", where=where, fix="write one question a row")
        self.rows, self.where = rows, where
        order: Any = [range(len(rows))]
        self.order = PromptSource(order, seed, batch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: int) -> Example:
        index: Any = self.order[sample]
        return self.row(index)

    def questions(self) -> Iterator[tuple[str, Example]]:
        """(place, example) of every row, its pictures left out."""
        kept = [name for name in self.rows.column_names if name != "images"]
        texts = TableExamples(self.rows.select_columns(kept), 0, self.where)
        return ((f"{self.where}, row {index}", texts.row(index)) for index in range(len(texts)))

    def row(self, index: int) -> Example:
        """Row `index` of the table; `DataError` when its prompt is no text."""
        values: Mapping[str, Any] = self.rows[index]
        if not isinstance(values["prompt"], str) or not values["prompt"].strip():
            raise DataError("a prompt is no text", where=f"{self.where}, row {index}", why=repr(values["prompt"])[:60],
                            fix="every row needs a question")  # fmt: skip
        given = values.get("images") or []
        images = tuple(_picture(item, self.where) for item in (given if isinstance(given, list) else [given]))
        found = [values.get(name) for name in ("privileged", "answer", "response")]
        hint, answer, response = ("" if value is None else str(value) for value in found)
        return Example(values["prompt"], hint, images, answer, response)


def _picture(item: Any, where: str) -> Any:
    """A PIL picture of what a table holds: a picture, or the path of a file below the folder of the table."""
    from PIL import Image

    if isinstance(item, str):
        try:
            item = Image.open(regular(inside(Path(where) if Path(where).is_dir() else Path(where).parent, item)))
        except (OSError, ValueError) as error:
            raise DataError("a picture cannot be read", where=where, why=str(error)) from error
    return item.convert("RGB")


def open_examples(source: str, seed: int, form: str, batch: int = 1) -> ExampleSource:
    """The examples of a recipe's `data` section; `DataError` for an unknown split or a table that cannot be used.

    form: which privileged text the examples of an embedded world carry.
    """
    world, _, split = source.partition(":")
    if world in WORLDS:
        check_world(source)
        from vidalign.tasks import pictures, tokens

        return WorldExamples((tokens if world == "tokens" else pictures).example, split, seed, form)
    return TableExamples(_read_table(source), seed, source, batch)


def evaluation_examples(source: str, count: int, form: str = "none") -> list[Example]:
    """The first `count` examples of a split, the same in every run; the first rows of a table."""
    examples = open_examples(source, 0, form)
    if isinstance(examples, TableExamples):
        return [examples.row(index) for index in range(min(count, len(examples)))]
    return [examples[n] for n in range(count)]


def is_examples(source: str) -> bool:
    """Whether a source of prompts holds examples of a language student, not prompts of a video student."""
    return source.partition(":")[0] in (*WORLDS, "datasets") or Path(source).suffix in FILES


def check_world(source: str) -> None:
    """Raises `DataError` when a source names a split that its embedded world does not have; reads nothing."""
    from vidalign.tasks import pictures, tokens

    world, _, split = source.partition(":")
    if world in WORLDS:
        (tokens if world == "tokens" else pictures).check_split(split)


def _read_table(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("tables are read by the package datasets", where=source, why="it is not installed",
                        fix="pip install 'vidalign[datasets]'") from error  # fmt: skip
    try:
        if source.startswith("datasets:"):
            name, _, split = source.removeprefix("datasets:").partition(":")
            return datasets.load_dataset(name, split=split or "train")
        kind = FILES.get(Path(source).suffix)
        if kind is None or not Path(source).is_file():
            raise DataError(f"there are no examples {source!r}", why="there is no such source",
                            fix="use tokens:train, pictures:train, datasets:NAME or a table file")  # fmt: skip
        return datasets.load_dataset(kind, data_files=source, split="train")
    except (OSError, ValueError) as error:
        raise DataError("the table cannot be read", where=source, why=str(error).split("\n", 1)[0],
                        fix="check its name, split and format") from error  # fmt: skip
