"""VideoPhy-2 [Bansal et al. 2025]: captions of actions; semantic adherence and physical commonsense from 1 to 5.

Prompt files: csv or jsonl with a column ``caption``; ``videophy2_test.csv`` repeats a caption for every model that was
judged. ``is_hard`` marks the hard subset; ``upsampled_caption`` is the rewritten form for models that want long
prompts. The scorer reads a csv ``caption,videopath``; names are free. Here they follow the authors' examples: the
caption with underscores, then the number of the video. It writes the csv again with a column ``score``, one file for
semantic adherence and one for physical commonsense; what it could not parse is 0. The joint score is the share of
videos with 4 or 5 in both.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vidalign.bench.suites.base import Item, Suite, distinct, read_text
from vidalign.bench.suites.exported import Exported, check_scored
from vidalign.bench.suites.scores import Dimension, Scored, base_name, means_by_prompt, number
from vidalign.errors import DataError, nearest

CSV = "sa_pc.csv"
NAME_CHARACTERS = 100
"""Longer captions are cut in file names and separated by a hash."""
TASKS = ("sa", "pc")
GOOD, BEST = 4, 5
"""Least score of a video that counts for the joint score, and the best one."""


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

    def read_scores(self, files: Sequence[Path], export: Exported) -> Scored:
        given = [_task(file) for file in files]
        if sorted(given) != sorted(TASKS):
            raise DataError(
                "one result file for each of sa and pc is needed",
                where="FILE",
                why=f"given: {', '.join(given) or 'none'}",
                fix="give output_sa.csv and output_pc.csv",
            )
        values = {task: _scores(file, export) for task, file in zip(given, files, strict=True)}
        names = [video.name for video in export.videos]
        joint = {name: float(all(values[task][name] >= GOOD for task in TASKS)) for name in names}
        dimensions = {}
        for task in TASKS:
            values[task] = {name: value for name, value in values[task].items() if value}  # 0: not parsed
            if values[task]:
                mean = math.fsum(values[task].values()) / len(values[task])
                dimensions[task] = Dimension(mean, len(values[task]), len(names))
        hard = [joint[video.name] for video in export.videos if "hard" in video.tags]
        if hard:
            dimensions["joint_hard"] = Dimension(math.fsum(hard) / len(hard), len(hard), len(hard))
        total = math.fsum(joint.values()) / len(joint)
        return Scored(dimensions, means_by_prompt(export, {**values, "joint": joint}), {"joint": total})


def _task(file: Path) -> str:
    """Which of the two a result file is of: only its name says it."""
    found = [task for task in TASKS if task in re.split(r"[^a-z0-9]+", file.stem.lower())]
    if len(found) != 1:
        raise DataError(
            "the name does not say whether it is of sa or pc",
            where=str(file),
            why="the scorer writes the same columns for both",
            fix="name them as its authors do: output_sa.csv, output_pc.csv",
        )
    return found[0]


def _scores(file: Path, export: Exported) -> dict[str, float]:
    """File name -> 1 to 5, or 0 for what the scorer could not parse."""
    rows = [] if file.suffix != ".csv" else list(_rows(file))
    if not rows:
        raise DataError("the result file holds no rows", where=str(file), fix="give the --output_csv of the scorer")
    named = [(base_name(_column(row, "videopath", place)), row, place) for place, row in rows]
    check_scored([name for name, _, _ in named], [video.name for video in export.videos], str(file))
    captions, scores = export.prompts, {}
    for name, row, place in named:
        if _column(row, "caption", place) != captions[name].strip():
            raise DataError(f"{name} has another caption", where=place, why=f"it was made for {captions[name]!r}")
        text = _column(row, "score", place)
        try:
            scores[name] = number(float(text), place, 0, BEST)
        except ValueError:
            number(text, place, 0, BEST)
    return scores


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
    for place, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError("a line is not JSON", where=f"{file}:{place}", why=error.msg) from error
        if not isinstance(record, dict):
            raise DataError("a line is not a record", where=f"{file}:{place}", fix='write {"caption": "..."}')
        yield f"{file}:{place}", record


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
