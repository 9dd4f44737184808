"""metrics.jsonl: the log that is always written, one flat JSON object a line, flushed at once.

Three kinds of line: `header` (first line of every start), `metrics` and `health`. Non-finite numbers are written as the
strings "NaN", "Infinity", "-Infinity" (as protobuf's JSON does). So every line is strict JSON and `float(value)` reads
them back. A resumed run appends a header with the step it starts from. Later steps of the interrupted run are then
superseded and `read_history` leaves them out.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from vidalign.errors import UserError
from vidalign.reading import check_object, parse_json, regular
from vidalign.tracking.base import RunInfo, TrackerPlugin
from vidalign.tracking.health import Health

History = dict[str, list[tuple[int, float]]]
FILE_NAME = "metrics.jsonl"
LONGEST_LINE = 1_000_000  # bytes; far beyond any line written here
_NOT_METRICS = ("kind", "step", "seconds")
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


class JsonlLog:
    """Appends to `path`; a last line cut short by a kill is removed first."""

    def __init__(self, path: str | Path, header: dict[str, Any], start_step: int = 0) -> None:
        self.path = Path(path)
        self._started = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if regular(self.path).is_file():
                read_records(self.path)  # nothing is appended to what is no log
            _drop_half_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error
        self._write({"kind": "header", "step": start_step, **header})

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self._started, 3)
        self._write({"kind": "metrics", "step": step, "seconds": seconds, **metrics})

    def health(self, step: int, name: str, message: str, fix: str) -> None:
        self._write({"kind": "health", "step": step, "name": name, "message": message, "fix": fix})

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps({key: _strict(value) for key, value in record.items()}, ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            "cannot write the metrics",
            where=str(self.path),
            why=error.strerror or str(error),
            fix="free some space or choose another run folder, then resume from the last checkpoint",
        )


class JsonlTracker(TrackerPlugin):
    """Writes `metrics.jsonl` in the run folder; every run has one."""

    name = "jsonl"

    def start(self, run: RunInfo) -> None:
        self._log = JsonlLog(run.folder / FILE_NAME, run.header, run.start_step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._log.metrics(step, values)

    def health(self, step: int, warning: Health) -> None:
        self._log.health(step, warning.name, warning.message, warning.fix)

    def close(self) -> None:
        self._log.close()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl; a last line cut short is left out. Raises `UserError` for one of another format."""
    if not Path(path).is_file():
        raise _not_ours(str(path), "there is no such file, or it is not a regular one")
    *lines, last = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                records.append(_record(line))
        except ValueError as error:
            raise _not_ours(f"{path}:{number}", str(error)) from error
    if not records and last and not last.startswith(b'{"kind"'):
        raise _not_ours(f"{path}:1", "it holds no line of a log")
    return records


def _record(line: bytes) -> dict[str, Any]:
    record = check_object(parse_json(line), {"kind": str, "step": int})
    if record["kind"] == "health":
        return check_object(record, {"name": str, "message": str, "fix": str})
    if record["kind"] == "metrics":
        for name, value in record.items():
            if name not in _NOT_METRICS and not isinstance(value, int | float) and value not in _NOT_FINITE:
                raise ValueError(f"{name!r} must be a number, not {str(value)[:40]!r}")
    return record


def _not_ours(where: str, why: str) -> UserError:
    return UserError(
        "the log of the run cannot be read",
        where=where,
        why=why,
        fix="move the file away: a run without its log can be used, its curves are lost",
    )


def read_history(path: str | Path) -> History:
    """Name -> [(step, value)] in order of steps; superseded steps left out, the last value of a step kept."""
    history: dict[str, dict[int, float]] = {}
    for record in read_records(path):
        if record["kind"] == "header":
            start = record["step"]
            for points in history.values():
                for step in [step for step in points if step > start]:
                    del points[step]
        elif record["kind"] == "metrics":
            for name, value in record.items():
                if name not in _NOT_METRICS:
                    history.setdefault(name, {})[record["step"]] = float(value)
    return {name: sorted(points.items()) for name, points in history.items() if points}


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _drop_half_line(path: Path) -> None:
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return
    with path.open("r+b") as file:
        start = max(0, size - LONGEST_LINE)
        file.seek(start)
        tail = file.read(size - start)
        if not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
