"""VideoPhy-2 [Bansal et al. 2025]: captions of actions; semantic adherence and physical commonsense from 1 to 5.

Prompt files: csv or jsonl with a column ``caption``; ``videophy2_test.csv`` repeats a caption for every model that was
judged. ``is_hard`` marks the hard subset; ``upsampled_caption`` is the rewritten form for models that want long
prompts. The scorer reads a csv ``caption,videopath``; names are free. Here they follow the authors' examples: the
caption with underscores, then the number of the video.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vidalign.bench.suites.base import Item, Suite, distinct, read_text
from vidalign.errors import DataError, nearest

CSV = "sa_pc.csv"
NAME_CHARACTERS = 100
"""Longer captions are cut in file names and separated by a hash."""


class VideoPhy2(Suite):
    """Videos for `inference.py --input_csv sa_pc.csv`, run inside OUT."""

    name: ClassVar[str] = "videophy2"
    seeds: ClassVar[int] = 1

    def read(self, file: Path, rewritten: str = "") -> list[Item]:
        """rewritten: a column of the file, ``upsampled_caption`` in the official ones."""
        return distinct(_items(file, rewritten), file)

    def file_name(self, item: Item, index: int) -> str:
        plain = item.prompt.rstrip(".").replace(" ", "_")
        name = re.sub(r"[^\w,;'()-]", "", plain, flags=re.ASCII)[:NAME_CHARACTERS]
        if name != plain:  # something was lost
            name += "-" + hashlib.sha256(item.prompt.encode()).hexdigest()[:8]
        return f"{name}_{index}.mp4"

    def index_file(self, rows: Sequence[tuple[Item, str]]) -> tuple[str, str] | None:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["caption", "videopath"])
        writer.writerows((item.prompt, path) for item, path in rows)
        return CSV, table.getvalue()


def _items(file: Path, rewritten: str) -> Iterator[Item]:
    for place, row in _rows(file):
        caption = _column(row, "caption", place)
        text = _column(row, rewritten, place) if rewritten else caption
        hard = str(row.get("is_hard", "")).strip().lower() in ("1", "1.0", "true")
        yield Item(caption, text, ("hard",) if hard else ())


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a csv or jsonl file, each with its place for messages."""
    if file.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
        for row in reader:
            yield f"{file}:{reader.line_num}", row
        return
    if file.suffix != ".jsonl":
        raise DataError(
            f"unknown format {file.suffix or file.name!r} of a VideoPhy-2 prompt file",
            where=str(file),
            fix="give a .csv or .jsonl file with a column 'caption'",
        )
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError("a line is not JSON", where=f"{file}:{number}", why=error.msg) from error
        if not isinstance(record, dict):
            raise DataError("a line is not a record", where=f"{file}:{number}", fix='write {"caption": "..."}')
        yield f"{file}:{number}", record


def _column(row: dict[str, Any], name: str, place: str) -> str:
    if name not in row:
        columns = [str(column) for column in row if column is not None]
        near = nearest(name, columns)
        fix = f"did you mean {near!r}?" if near else f"columns: {', '.join(columns)}"
        raise DataError(f"there is no column {name!r}", where=place, fix=fix)
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name!r} is empty", where=place, fix="fill it in, or remove the row")
    return value.strip()
