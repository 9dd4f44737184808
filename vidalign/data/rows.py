"""Rows of table files as they are written: a string in a file is that string, whatever it looks like.

.csv, .tsv and the JSON formats are read here, by the standard library: no reader may take 007 for a number, "None" for
nothing or a date for a time. Numbers of JSON keep their digits. A format may be compressed (``.jsonl.gz``). Parquet
files and saved data sets have types of their own and are read by `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from vidalign.data.cells import UTF_8, half_characters
from vidalign.errors import DataError, first_line
from vidalign.quiet import no_bars
from vidalign.reading import regular

Row = dict[str, Any]
FORMATS = {
    ".json": "json",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""How the files of a suffix are read."""
LONGEST_CAUSE = 300
"""Characters of what a library says."""
ESCAPE = "\\u"
"""How JSON begins a character by its number."""
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Compressions that may stand behind the suffix of a text format."""


class WrittenFloat(float):
    """A number of JSON that prints as it is written: 3.10."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


class Rows(Protocol):
    """What a table is to its readers: a list of rows, or a `datasets.Dataset`."""

    @property
    def column_names(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class ListedRows:
    """Rows in memory; a column that a row lacks is None there."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.column_names = list(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return dict.fromkeys(self.column_names) | self.rows[index]


def format_of(name: str) -> str:
    """How a file of this name is read; '' for one that is no table."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    packed = suffixes[-1:] and suffixes[-1] in PACKED
    kind = FORMATS.get(suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1], "") if suffixes else ""
    return "" if packed and kind == "parquet" else kind


def read_table(path: str) -> Rows:
    """All rows of a file, or of a folder that `Dataset.save_to_disk` wrote; `DataError` with file and line."""
    if is_saved(path):
        rows: Rows | dict[str, Rows] = saved(path)
        if isinstance(rows, dict):
            fix = f"name one of its splits, {path}/{next(iter(rows))}"
            raise DataError("the data set has several splits", where=path, why=f"splits: {', '.join(rows)}", fix=fix)
        return rows
    if format_of(path) == "parquet":
        return _parquet(path)
    return ListedRows(list(written_rows(path, path)))


def is_saved(path: str) -> bool:
    """Whether `Dataset.save_to_disk` wrote this folder."""
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def written_rows(path: str, name: str) -> Iterator[Row]:
    """The rows of a csv, tsv or JSON file, one after the other; see `placed_rows`."""
    return (row for _, row in placed_rows(path, name))


def placed_rows(path: str, name: str) -> Iterator[tuple[str, Row]]:
    """(place, row) of a csv, tsv or JSON file, one after the other.

    path: where it lies, an address of `fsspec` too. name: what it is called, which says its format, and in messages.
    """
    reader = {"csv": _csv, "tsv": _tsv, "json": _json, "lines": _lines}[format_of(name)]
    empty = True
    try:
        with _opened(path, name) as file:
            for placed in reader(file, name):
                empty = False
                yield placed
    except UnicodeDecodeError as error:
        why = f"byte {error.object[error.start] if error.object else 0:#04x} is no UTF-8"
        raise DataError("the table cannot be read", where=name, why=why, fix="save it as UTF-8") from error
    except (OSError, EOFError, ImportError) as error:
        raise DataError(
            "the table cannot be read", where=name, why=first_line(error), fix="check the path and the file"
        ) from error
    if empty:
        raise DataError("the data hold no row", where=name, fix="write one question a row")


def _opened(path: str, name: str) -> IO[str]:
    import fsspec

    suffix = Path(name).suffix.lower()
    packed = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}.get(suffix)
    if "://" not in path:
        regular(Path(path))
    raw = fsspec.open(path, "rb", compression=packed).open()
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _tsv(file: IO[str], name: str) -> Iterator[tuple[str, Row]]:
    return _csv(file, name, "\t")


def _csv(file: IO[str], name: str, delimiter: str = ",") -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass  # an empty line
            elif header is None:
                header = _header(cells, f"{name}:{line}")
            elif len(cells) != len(header):
                raise DataError(
                    "a row has another number of cells than the header",
                    where=f"{name}:{line}",
                    why=f"{len(cells)} and {len(header)}",
                    fix="put cells that hold the delimiter into double quotes",
                )
            else:
                yield f"{name}:{line}", dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError("the table cannot be read", where=f"{name}:{line}", why=str(error), fix="repair it") from error


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are called {twice!r}", where=where, fix="rename one of them")
    return names


def _lines(file: IO[str], name: str) -> Iterator[tuple[str, Row]]:
    """JSON lines; only a line feed ends a line."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{name}:{number}"
            yield place, _row(_value(line, name, number - 1), place, ESCAPE in line)


def _json(file: IO[str], name: str) -> Iterator[tuple[str, Row]]:
    """A list of rows, an object with one list of rows in it (``{"data": [...]}``), one row, or JSON lines."""
    text = file.read()
    escaped = ESCAPE in text
    try:
        value = _value(text, name, 0)
    except DataError:
        first, _, rest = text.strip().partition("\n")
        if not (rest and _is_json(first)):
            raise
        yield from _lines(io.StringIO(text), name)
        return
    if isinstance(value, dict) and value.get("data") == []:
        value = []
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if _are_rows(entry)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise DataError("the table is no list of rows", where=name, fix='write [{"prompt": "..."}, ...]')
    for number, entry in enumerate(value):
        place = f"{name}, row {number}"
        yield place, _row(entry, place, escaped)


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _value(text: str, name: str, lines_before: int) -> Any:
    if not text.strip():
        return []
    try:
        return json.loads(text, parse_float=WrittenFloat)
    except json.JSONDecodeError as error:
        line = lines_before + error.lineno
        raise DataError("a line is not JSON", where=f"{name}:{line}", why=error.msg, fix="repair it") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
        where = f"{name}:{lines_before + 1}"
        raise DataError("the table cannot be read", where=where, why=first_line(error), fix="repair it") from error


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _row(value: Any, where: str, escaped: bool) -> Row:
    """A row as it was read; escaped: whether its text has escapes, without which UTF-8 holds no half character."""
    if not isinstance(value, dict):
        raise DataError("a row is no record", where=where, why=str(value)[:60], fix='write {"prompt": "..."}')
    if escaped and (why := half_characters(json.dumps(value, ensure_ascii=False))):
        raise DataError("a row cannot be used", where=where, why=why, fix=UTF_8)
    return value


def _parquet(path: str) -> Rows:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        pyarrow.parquet.read_schema(regular(Path(path)))
        with no_bars("datasets"):
            rows: Rows = datasets.Dataset.from_parquet(path)
    except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise unreadable(path, error) from error
    return rows


def saved(path: str) -> Any:
    """What `Dataset.save_to_disk` wrote, one data set or several splits; `DataError` where it cannot be read."""
    import datasets
    import pyarrow

    try:
        return datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(where: str, error: BaseException) -> DataError:
    """The error of a table that a library could not read, with the first cause that it gives."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    why = " ".join(str(cause).split())[:LONGEST_CAUSE] or type(cause).__name__
    return DataError("the table cannot be read", where=where, why=why, fix="check its name, configuration and split")
