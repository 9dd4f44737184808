"""The plain tables of a benchmark's page: what was spent, parts of the prompts, how the judges were validated."""

from __future__ import annotations

import math
from typing import Any

from vidalign.bench.parts import CHOSEN, MANY, Parts, differences_of, families, means_of, starts
from vidalign.bench.results import Cell, Results
from vidalign.bench.watched import watched
from vidalign.report import Table

COUNTED = ("forwards", "reward_calls", "teacher_calls", "responses")


def label_of(cell: Cell) -> str:
    """The cell as a line of a chart or a table."""
    return f"{cell.row}, seed {cell.seed}" if cell.kind == "objective" else cell.row


def diagnostics(results: Results) -> list[Table]:
    """All of them that have rows."""
    health = results.health or {}
    tables = [_cost_table(results), *_part_tables(results)]
    if perturbations := health.get("perturbations"):
        names = dict.fromkeys(name for values in perturbations.values() for name in values)
        keys = watched(names)
        columns = sorted(names, key=lambda name: name not in (keys.held_out, keys.passed, keys.trained))
        rows: list[tuple[str, list[float | str]]] = [
            (row, [*_separated(health.get("falls", {}).get(row)), *(number(values.get(name)) for name in columns)])
            for row, values in perturbations.items()
        ]
        titles = ["separated", "fall", "low", "high", *(name.replace("/", ": ") for name in columns)]
        note = (
            "Means over ground-truth clips that were corrupted on purpose. Fall: of the auditor's composite below"
            " that of the same clips intact, with its 95 % interval; separated where that is above zero."
        )
        tables.append(Table("Perturbation table", titles, rows, note))
    if probe := health.get("hacking_probe"):
        tables.append(_probe_table(probe))
    return [table for table in tables if table.rows]


def _part_tables(results: Results) -> list[Table]:
    """Means and differences to the baselines, by family and by start, of the held-out score and its pass."""
    keys = watched(dict.fromkeys(name for cell in results.cells for name in cell.metrics))
    tables = []
    by_start = starts(results, keys.passed) if keys.passed else {}
    for what, parts, note in (("family", families(results), MANY), ("start", by_start, CHOSEN)):
        for metric in (key for key in (keys.held_out, keys.passed) if key and parts):
            name = metric.replace("/", ": ")
            tables.append(_text_table(f"{name}, by {what}", parts, means_of(results, metric, parts), note))
            lines = differences_of(results, metric, parts)
            tables.append(_text_table(f"{name}, differences to the baselines by {what}", parts, lines, note))
    return tables


def _text_table(title: str, parts: Parts, lines: list[list[str]], note: str) -> Table:
    rows: list[tuple[str, list[float | str]]] = [(first, [*rest]) for first, *rest in lines]
    return Table(title, list(parts), rows, note)


def _separated(fall: dict[str, Any] | None) -> list[float | str]:
    if fall is None:
        return ["", math.nan, math.nan, math.nan]
    low, high = fall["interval"]
    return ["yes" if fall["separated"] else "no", number(fall["mean"]), number(low), number(high)]


def _cost_table(results: Results) -> Table:
    """Spent against predicted and what was spent before, for every trained cell."""
    rows: list[tuple[str, list[float | str]]] = []
    names = [name for name in COUNTED if name != "responses" or any(cell.spent.responses for cell in results.cells)]
    for cell in results.cells:
        if cell.kind == "objective" and cell.error is None:
            values: list[float | str] = []
            before: list[float | str] = []
            for name in names:
                values += [number(getattr(cell.spent, name)), number(getattr(cell.predicted, name))]
                before.append(number(getattr(cell.before, name)))
            rows.append((label_of(cell), [*values, *before, cell.spent.seconds, cell.spent.peak_memory_mib]))
    columns = [f"{name.replace('_', ' ')}{suffix}" for name in names for suffix in ("", ", predicted")]
    columns += [f"{name.replace('_', ' ')}, spent before" for name in names]
    return Table("Spent and predicted", [*columns, "seconds", "peak memory, MiB"], rows)


def _probe_table(probe: dict[str, dict[str, Any]]) -> Table:
    rows: list[tuple[str, list[float | str]]] = []
    asked = [(who, when) for who in ("reward", "auditor", "passed") for when in ("before", "after")]
    for reward, outcome in probe.items():
        scores = [number(outcome[when].get(who)) for who, when in asked]  # earlier versions did not ask for the pass
        low, high = (number(end) for end in outcome["interval"])
        separated = "yes" if outcome["separated"] else "no"
        rows.append((reward, [*scores, number(outcome["excess"]), low, high, separated]))
    columns = [f"{who} {when}" for who, when in asked]
    columns += ["excess", "low", "high", "separated"]
    note = (
        "An adversary raises one training reward alone by changing pixels. Excess: gain of the reward minus that of "
        "the held-out auditor's composite, mean over clips and its 95 % interval; separated where that is above zero."
    )
    return Table("Reward-hacking probe", columns, rows, note)


def number(value: Any) -> float:
    """NaN for what a file holds as null."""
    return math.nan if value is None else float(value)
