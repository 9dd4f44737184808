"""The result file of a benchmark, ``benchmarks/results/PROTOCOL.json``: protocol, machine, one cell a row and seed.

Every cell carries a digest of its contents, and the file one of all. So a number changed by hand is detected when the
file is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vidalign.data.paths import is_file_name
from vidalign.errors import DataError
from vidalign.owner import replacing
from vidalign.reading import check_object, read_json
from vidalign.writing import compact


@dataclass
class Spent:
    """What a cell cost. forwards: network calls on one chunk of one clip; calls: clips judged or made."""

    forwards: float = 0.0
    """Training only; the student's network and that of further trained roles."""
    reward_calls: float = 0.0
    """Clips that were judged in training, once for each reward."""
    teacher_calls: float = 0.0
    """Clips that the teacher made, or velocities of one clip that it predicted."""
    seconds: float = 0.0
    """Wall time of the training steps."""
    peak_memory_mib: float = 0.0
    """Largest resident memory of the process, on an accelerator that of the device."""
    responses: float = 0.0
    """Responses that a language student generated in training."""


@dataclass
class Predicted:
    """What the cost model says of the recipe before anything runs, in the units of `Spent`."""

    forwards: float = 0.0
    reward_calls: float = 0.0
    teacher_calls: float = 0.0
    responses: float = 0.0


@dataclass
class Cell:
    """One row of the table with one training seed."""

    row: str
    """Name of the row: an objective's name in the protocol, ``base``, ``teacher``, ``ground_truth``."""
    kind: str
    """``objective`` or ``reference``."""
    seed: int
    recipe: str | None = None
    """Of an objective with the changes that make it this row; of the teacher its weights."""
    recipe_hash: str | None = None
    commit: str = ""
    device: str = ""
    command: str = ""
    """The command that trains this cell alone; empty for references."""
    spent: Spent = field(default_factory=Spent)
    before: Spent = field(default_factory=Spent)
    """What was spent before, on runs and buffers that were made for the row."""
    predicted: Predicted = field(default_factory=Predicted)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """By METRIC/NAME one value a prompt, the mean over evaluation seeds; NaN = not judged (null in the file)."""
    prompt_split: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Range of prompts by split: ``held_out``, ``out_of_domain``."""
    drift: dict[str, list[float]] = field(default_factory=dict)
    """By METRIC/NAME one value a chunk of the long clips, mean over prompts."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Points along training: step, what was spent by then under the names of `Spent`, and METRIC/NAME values."""
    clips: str | None = None
    """Clips shown in the report, ``PROTOCOL/ROW-SEED.npz`` below ``runs/bench``, key ``clips`` uint8
    ``[P_shown, F, H, W, 3]`` of the first prompts."""
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    """Why the cell has no metrics; the other cells went on."""
    digest: str = ""

    def sealed(self) -> Cell:
        """This cell with its digest."""
        self.digest = digest_of(asdict(self))
        return self


@dataclass
class ProtocolStamp:
    """Which protocol made a result."""

    name: str
    hash: str
    text: str
    """The resolved protocol as YAML."""


@dataclass
class Results:
    """A whole result file."""

    protocol: ProtocolStamp
    world_hash: str
    command: str
    machine: dict[str, Any]
    prompts: list[str]
    cells: list[Cell] = field(default_factory=list)
    health: dict[str, Any] | None = None
    """``perturbations``: means by row and METRIC/NAME; ``hacking_probe``: see `vidalign.worlds.health`."""
    families: list[str] = field(default_factory=list)
    """Family of every prompt, by its source; empty where there is none."""
    baselines: dict[str, str] = field(default_factory=dict)
    """By trained row the row that it is to beat."""
    claims: dict[str, str] = field(default_factory=dict)
    """By trained row the claim that it tests, where it tests one."""
    detectable: dict[str, dict[str, float]] = field(default_factory=dict)
    """By split and METRIC/NAME the difference to a baseline that is detected with probability .8; see
    `vidalign.bench.comparison.detectable`."""
    outdated_since: str = ""
    """Commit since which the code gives other numbers; no part of the digest, because it is written later."""

    def row_names(self) -> list[str]:
        """The rows in the order of the cells."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    def of_row(self, row: str) -> list[Cell]:
        """The cells of a row that have metrics, by seed."""
        return sorted((c for c in self.cells if c.row == row and c.error is None), key=lambda cell: cell.seed)


def digest_of(cell: dict[str, Any]) -> str:
    """SHA-256 of a cell as plain data without its digest."""
    plain = _plain({key: value for key, value in cell.items() if key != "digest"})
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def file_digest(document: dict[str, Any]) -> str:
    """SHA-256 of a result file as plain data without ``outdated_since``; of its cells their digests."""
    document = {name: value for name, value in document.items() if name != "outdated_since"}
    return digest_of({**document, "cells": [cell["digest"] for cell in document["cells"]]})


def read_results(path: str | Path) -> Results:
    """Read a result file. Raises `DataError` when it is missing, damaged, or was changed after it was written."""
    path = Path(path)
    try:
        document = check_object(read_json(path), {"protocol": dict, "cells": list, "prompts": list})
    except FileNotFoundError as error:
        raise DataError(f"there is no result file {path}", fix="make it with `vidalign bench run PROTOCOL`") from error
    except (OSError, ValueError) as error:
        raise DataError("cannot read the result file", where=str(path), why=str(error)) from error
    try:
        stamp = ProtocolStamp(**check_object(document.pop("protocol"), {"name": str, "hash": str, "text": str}))
        _check_name(stamp.name, "protocol")
        if hashlib.sha256(stamp.text.encode()).hexdigest()[:12] != stamp.hash:
            fix = "restore the file, or measure again"
            raise DataError("the protocol was changed after it was measured", where=str(path), fix=fix)
        cells = [read_cell(cell, str(path)) for cell in document["cells"]]
        if file_digest(document | {"protocol": asdict(stamp)}) != document.pop("digest", ""):
            fix = "restore the file, or write it anew by its command: finished cells are not run again"
            raise DataError("the result was changed after it was measured", where=str(path), fix=fix)
        del document["cells"]
        return Results(stamp, cells=cells, **document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            "this is not a benchmark result", where=str(path), why=f"{type(error).__name__}: {error}"
        ) from error


def read_cell(plain: dict[str, Any], where: str) -> Cell:
    """A cell from plain data; `DataError` when its digest does not fit."""
    if digest_of(plain) != plain["digest"]:
        name = f"{plain.get('row')}, seed {plain.get('seed')}"
        raise DataError(
            f"the cell {name!r} was changed after it was measured",
            where=where,
            why=f"its digest is {plain['digest'][:12]}, its contents give {digest_of(plain)[:12]}",
            fix="restore the file, or measure again",
        )
    check_object(plain, {"row": str, "kind": str, "seed": int, "metrics": dict, "drift": dict, "prompt_split": dict})
    _check_name(plain["row"], "row")
    values = {f.name: plain[f.name] for f in fields(Cell) if f.name in plain}
    values |= {name: Spent(**plain[name]) for name in ("spent", "before") if name in plain}
    values["predicted"] = _predicted(plain["predicted"])
    values["metrics"] = {name: [math.nan if v is None else v for v in row] for name, row in plain["metrics"].items()}
    values["drift"] = {name: [math.nan if v is None else v for v in row] for name, row in plain["drift"].items()}
    values["prompt_split"] = {name: (first, last) for name, (first, last) in plain["prompt_split"].items()}
    cell = Cell(**values)
    return (
        cell if set(plain) >= {f.name for f in fields(Cell)} else cell.sealed()
    )  # an earlier version has fewer fields


def _check_name(name: str, of: str) -> None:
    """Raises `ValueError` for a name that would lead out of the folder of its protocol."""
    if not is_file_name(name):
        raise ValueError(f"the name of a {of}, {name[:60]!r}, cannot be that of a file")


def sealed_health(health: dict[str, Any] | None) -> dict[str, Any] | None:
    """The examination of the judges with its digest; None where there was nothing to examine."""
    return None if health is None else {**health, "digest": digest_of(health)}


def read_health(health: dict[str, Any] | None, where: str) -> dict[str, Any] | None:
    """The examination of the judges without its digest; `DataError` when that does not fit."""
    if health is None:
        return None
    if health.get("digest") != digest_of(health):
        raise DataError(
            "the examination of the judges was changed after it was measured",
            where=where,
            fix="restore the file, or remove it to examine them anew",
        )
    return {name: value for name, value in health.items() if name != "digest"}


def _predicted(plain: dict[str, float | None]) -> Predicted:
    """The prediction; NaN where the objective declares no cost."""
    return Predicted(**{name: math.nan if value is None else value for name, value in plain.items()})


def write_results(path: str | Path, results: Results) -> Path:
    """Write a result file whole or not at all."""
    document = asdict(results)
    return write_json(Path(path), document | {"digest": file_digest(document)})


def write_json(path: Path, data: Any) -> Path:
    """Plain data as JSON (NaN as null), whole or not at all. Raises `DataError` when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(compact(_plain(data)) + "\n", encoding="utf-8")
    except OSError as error:
        fix = "free some space; what is finished is kept" if error.errno == 28 else ""
        raise DataError(f"cannot write {path.name}", where=str(path.parent), why=str(error), fix=fix) from error
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
