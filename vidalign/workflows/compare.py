"""Two rows of benchmark results, compared: paired differences with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vidalign.bench.comparison import Difference
from vidalign.bench.comparison import compare as differences
from vidalign.bench.results import Results, read_results
from vidalign.bench.runner import RESULTS
from vidalign.errors import UsageError


@dataclass
class Comparison:
    """Row `b` minus row `a`."""

    a: str
    b: str
    split: str
    seeds: int
    """Training seeds of the row that has more."""
    differences: list[Difference]
    """One a metric."""


def compare(a: str, b: str, split: str = "held_out") -> Comparison:
    """Compare two rows, paired by prompt and training seed.

    a: ``RESULT:ROW``, where RESULT is a result file, or a protocol that was run in this folder; b: the same, or a row
    of the same result; split: ``held_out`` or ``out_of_domain``. Raises `UserError` for rows, splits and results that
    do not exist or were measured by different protocols.
    """
    first, row_a = _row(a, None)
    second, row_b = _row(b, first)
    by_metric = differences(first, row_a, row_b, second, split)
    seeds = max(len(first.of_row(row_a)), len(second.of_row(row_b)))
    return Comparison(row_a, row_b, split, seeds, by_metric)


def read_result(name: str) -> Results:
    """A result by its file, or by the name of a protocol that was run in this folder."""
    return read_results(result_file(name))


def result_file(name: str) -> Path:
    """The file that is meant: itself, or that of a protocol (its name or file) that was run in this folder."""
    file = Path(name)
    if file.suffix == ".json":
        return file
    return Path("runs") / "bench" / (file.stem if file.suffix in (".yaml", ".yml") else name) / RESULTS


def _row(text: str, same: Results | None) -> tuple[Results, str]:
    result, _, row = text.rpartition(":")
    if not result and same is not None:
        return same, row
    if not result or not row:
        raise UsageError(f"{text!r} names no row of a result", fix="write RESULT:ROW, such as quickstart:base")
    return read_result(result), row
