"""Result files of the official scorers, read back beside the export and into its run.

EXPORT/scores.json       suite, version of the scorer, export, student, values by dimension and by prompt
RUN/scores/SUITE.json    the same file, where the manifest names the run; RUN/report.html shows it
"""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vidalign.bench.suites.base import Suite
from vidalign.bench.suites.exported import Exported, open_export
from vidalign.errors import DataError, UserError
from vidalign.owner import replacing
from vidalign.reading import check_object, content_hash, read_json, regular
from vidalign.report import Table

SCORES = "scores.json"
RUN_SCORES = "scores"


@dataclass(frozen=True)
class Dimension:
    """One number of a suite."""

    value: float
    videos: int
    """That it is the mean of."""
    expected: int
    """That it could have been the mean of: some dimensions drop videos that show nothing to judge."""


@dataclass(frozen=True)
class Scored:
    """What the official scorer found."""

    dimensions: dict[str, Dimension]
    prompts: dict[str, dict[str, float]]
    """Prompt -> mean over its videos by dimension."""
    totals: dict[str, float] = field(default_factory=dict)
    """The suite's own summary, the last one first quoted; empty where a part of it was not scored."""


def import_scores(
    suite: Suite, files: Sequence[Path], export: Path, version: str, out: Path | None = None
) -> list[Path]:
    """Check the scorer's result files against the export and write one scores file; returns where it was written.

    version: of the scorer, as free text: its result files do not say it. out: the only file to write, if given.
    Raises `UsageError` for an export that cannot be used, `DataError` for files that do not belong to it.
    """
    if not version.strip():
        raise DataError("the scorer's version is empty", where="--version", fix="say what scored, e.g. 0.1.5")
    exported = open_export(export, suite.name)
    scored = suite.read_scores(files, exported)
    record = {
        "suite": suite.name,
        "version": version.strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "files": [{"name": file.name, "sha256": content_hash(file)} for file in files],
        "export": {name: value for name, value in exported.about.items() if name != "run"},
        "totals": scored.totals,
        "dimensions": {name: asdict(one) for name, one in scored.dimensions.items()},
        "prompts": [{"prompt": prompt, "values": values} for prompt, values in scored.prompts.items()],
    }
    places = [out or export / SCORES]
    if out is None and exported.run is not None:
        places.append(exported.run / RUN_SCORES / f"{suite.name}.json")
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    for place in places:
        _write(place, text)
    return places


def _write(place: Path, text: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(regular(place)) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            "cannot write the scores", where=str(place), why=error.strerror or str(error), fix="choose another --out"
        ) from error


def suite_table(run: Path, student_sha256: str | None) -> Table | None:
    """The scores files of a run as one table, None where there is none; warns of a file that cannot be read.

    student_sha256: of the student that the page is about, None where it is not known; scores of another one say so.
    """
    rows: list[tuple[str, list[float | str]]] = []
    for file in sorted((run / RUN_SCORES).glob("*.json")):
        try:
            rows += _rows(read_json(file), student_sha256)
        except (OSError, ValueError) as error:
            warnings.warn(f"the report shows no scores of {file}: {error}", UserWarning, stacklevel=2)
    note = "Read from the result files of the official scorers; the values of a suite can be compared within a version."
    columns = ["version", "dimension", "value", "videos", "date", "student"]
    return Table("External suites", columns, rows, note) if rows else None


def _rows(record: Any, student_sha256: str | None) -> list[tuple[str, list[float | str]]]:
    texts = {"suite": str, "version": str, "date": str}
    check_object(record, texts | {"export": dict, "totals": dict, "dimensions": dict})
    check_object(record["totals"], dict.fromkeys(record["totals"], (int, float)))
    export = check_object(record["export"], {"student_sha256": str})
    student = "this one" if export["student_sha256"] == student_sha256 else "another one"
    student = "not compared" if student_sha256 is None else student
    values = [(name, value, "") for name, value in record["totals"].items()]
    for name, one in record["dimensions"].items():
        check_object(one, {"value": (int, float), "videos": int, "expected": int})
        count = str(one["videos"]) if one["videos"] == one["expected"] else f"{one['videos']} of {one['expected']}"
        values.append((name, one["value"], count))
    return [
        (record["suite"], [record["version"], name.replace("_", " "), float(value), count, record["date"], student])
        for name, value, count in values
    ]


def means_by_prompt(export: Exported, values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Dimension -> file name -> value as prompt -> dimension -> mean, in the order of the manifest."""
    prompts = export.prompts
    gathered: dict[str, dict[str, list[float]]] = {prompt: defaultdict(list) for prompt in prompts.values()}
    for dimension, videos in values.items():
        for name, value in videos.items():
            gathered[prompts[name]][dimension].append(value)
    return {
        prompt: {dimension: math.fsum(these) / len(these) for dimension, these in by.items()}
        for prompt, by in gathered.items()
        if by
    }


def read_result(file: Path, kind: type) -> Any:
    """A result file in JSON; `DataError` when it cannot be read or is of another type."""
    try:
        content = read_json(file)
        if not isinstance(content, kind):
            raise ValueError(f"expected {'an object' if kind is dict else 'a list'}, found {type(content).__name__}")
    except (OSError, ValueError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise DataError("the result file cannot be read", where=str(file), why=why, fix="check the FILEs") from error
    return content


def number(value: Any, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number (or a truth value) between the bounds; `DataError` naming the place otherwise."""
    if isinstance(value, int | float) and math.isfinite(value) and low <= value <= high:
        return float(value)
    bounds = "a number" if low == -math.inf else f"a number from {low:g} to {high:g}"
    raise DataError(f"{str(value)[:40]!r} is no score", where=where, why=f"expected {bounds}")


def base_name(path: str) -> str:
    """The file name of a path of any system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]
