"""What a result says: means of every row with their intervals, paired differences of two rows, and who wins."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from vidalign.bench.differences import SEEDS, first_difference
from vidalign.bench.results import Cell, Results
from vidalign.bench.sections import BASE
from vidalign.bench.watched import metric_kind
from vidalign.errors import DataError, UserError, nearest
from vidalign.evaluation.intervals import estimate
from vidalign.report.model import LEAST_PROMPTS, TOO_FEW

HELD_OUT = "held_out"


@dataclass
class RowSummary:
    """Mean of one metric of one row."""

    row: str
    metric: str
    mean: float
    interval: tuple[float, float]


@dataclass
class Difference:
    """Row b minus row a, paired by prompt and training seed."""

    metric: str
    difference: float
    interval: tuple[float, float]
    detectable: float
    """The difference that these prompts and seeds show with probability .8."""
    verdict: str
    """``better``, ``worse``, or ``unclear`` when the interval does not exclude zero; ``too few prompts``
    below eight."""
    prompts: int = LEAST_PROMPTS
    """Prompts that have a difference."""


def values_of(
    cells: Sequence[Cell], metric: str, split: str = HELD_OUT, among: Collection[int] | None = None
) -> torch.Tensor:
    """Values ``[S, P]`` of a metric on a split, one row a cell; NaN where it was not judged.

    among: numbers of prompts, of which those of the split are taken; None takes the whole split.
    """
    rows = []
    for cell in cells:
        first, last = cell.prompt_split.get(split, (0, 0))
        row = cell.metrics.get(metric)
        chosen = [n for n in range(first, last) if among is None or n in among]
        rows.append([math.nan if row is None else row[n] for n in chosen])
    return torch.tensor(rows, dtype=torch.float64)


def summaries(results: Results, split: str = HELD_OUT) -> list[RowSummary]:
    """Every metric of every row, rows in the order of the cells; metrics without a value are left out."""
    rows = []
    for row in results.row_names():
        cells = results.of_row(row)
        for metric in metric_names(cells):
            values = values_of(cells, metric, split)
            if values.isfinite().any():
                found = estimate(values)
                rows.append(RowSummary(row, metric, found.mean, found.interval))
    return rows


def metric_names(cells: Sequence[Cell]) -> list[str]:
    """Names of metrics in the order of the cells."""
    return list(dict.fromkeys(name for cell in cells for name in cell.metrics))


def compare(results: Results, a: str, b: str, other: Results | None = None, split: str = HELD_OUT) -> list[Difference]:
    """Every metric of row `b` (of `other`, by default of the same result) minus that of row `a`.

    Trained rows are paired by training seed and compared on the seeds that both have. A reference row has one cell,
    which is paired with every seed. Raises `UserError` for an unknown row, and for results of different protocols.
    """
    other = other if other is not None else results
    check_same_protocol(results, other)
    check_split(results, split)
    first, second = paired(cells_of(results, a), cells_of(other, b), a, b)
    found = (difference(first, second, metric, split) for metric in metric_names(second))
    return [one for one in found if one is not None]


def difference(
    a: Sequence[Cell], b: Sequence[Cell], metric: str, split: str = HELD_OUT, among: Collection[int] | None = None
) -> Difference | None:
    """Cells `b` minus the cells `a` that they are paired with; None where no prompt has a value in both.

    among: see `values_of`.
    """
    values = values_of(b, metric, split, among) - values_of(a, metric, split, among)
    if not values.isfinite().any():
        return None
    found = estimate(values)
    low, high = found.interval
    judged = int(values.isfinite().any(0).sum())
    verdict = TOO_FEW if judged < LEAST_PROMPTS else "better" if low > 0 else "worse" if high < 0 else "unclear"
    return Difference(metric, found.mean, found.interval, found.detectable, verdict, judged)


def baseline_of(results: Results, row: str) -> str:
    """The row that a trained row is compared with: its own, or where that has no training seed of this row's the start
    weights; '' where they were not judged either."""
    cells = results.of_row(row)
    named = (results.baselines.get(row, BASE), BASE)
    return next((name for name in named if _can_be_paired(results.of_row(name), cells)), "")


def baselines_of(results: Results) -> dict[str, str]:
    """The baseline of every trained row that can be compared with one; see `baseline_of`."""
    rows = [row for row in results.row_names() if any(cell.kind == "objective" for cell in results.of_row(row))]
    return {row: baseline for row in rows if (baseline := baseline_of(results, row))}


def detectable(results: Results, split: str = HELD_OUT) -> dict[str, float]:
    """By METRIC/NAME the difference to a baseline that a row of this table shows with probability .8.

    The root mean square over the trained rows: it pools their variances, of which few seeds say little each.
    """
    found: dict[str, list[float]] = {}
    for row, baseline in baselines_of(results).items():
        for one in compare(results, baseline, row, split=split):
            if math.isfinite(one.detectable):
                found.setdefault(one.metric, []).append(one.detectable)
    return {name: math.sqrt(sum(x * x for x in values) / len(values)) for name, values in found.items()}


def goal_row(results: Results) -> str:
    """The row whose distance from the start weights is to be closed: a language student's teacher, else the truth."""
    names = {metric.partition("/")[0] for cell in results.cells for metric in cell.metrics}
    graded = any(kind is not None and kind.judges == "answers" for kind in map(metric_kind, names))
    return "teacher" if graded and results.of_row("teacher") else "ground_truth"


def check_same_protocol(a: Results, b: Results) -> None:
    """Raises `UserError` naming the first difference of two protocols."""
    difference = first_difference(a.protocol.text, b.protocol.text, but=SEEDS)
    if not difference and a.prompts == b.prompts:
        return
    raise UserError(
        "results of different protocols cannot be compared",
        where=f"{a.protocol.name} and {b.protocol.name}",
        why=f"the first difference is {difference or 'the prompts'}",
        fix="measure both by the same protocol",
    )


def splits_of(results: Results) -> list[str]:
    """Names of the splits of its prompts."""
    return list(dict.fromkeys(name for cell in results.cells for name in cell.prompt_split))


def check_split(results: Results, split: str) -> None:
    """Raises `UserError` with the nearest name when a result has no such split of its prompts."""
    known = splits_of(results)
    if split not in known:
        close = nearest(split, known)
        fix = f"did you mean {close!r}?" if close else f"splits: {', '.join(known)}"
        raise UserError(f"the result has no prompts {split!r}", where=results.protocol.name, fix=fix)


def cells_of(results: Results, row: str) -> list[Cell]:
    """The cells of a row that have values; `UserError` with the nearest name when there is no such row."""
    names = results.row_names()
    if row not in names:
        close = nearest(row, names)
        fix = f"did you mean {close!r}?" if close else f"rows: {', '.join(names)}"
        raise UserError(f"there is no row {row!r} in the result", where=results.protocol.name, fix=fix)
    cells = results.of_row(row)
    if not cells:
        reasons = "; ".join(str(cell.error) for cell in results.cells if cell.row == row)
        raise DataError(f"the row {row!r} has no values", where=results.protocol.name, why=reasons)
    return cells


def _can_be_paired(a: list[Cell], b: list[Cell]) -> bool:
    """Whether two rows have values of the same training seed, or one of them is a reference."""
    if not a or not b or "reference" in (a[0].kind, b[0].kind):
        return bool(a and b)
    return bool({cell.seed for cell in a} & {cell.seed for cell in b})


def paired(a: list[Cell], b: list[Cell], name_a: str, name_b: str) -> tuple[list[Cell], list[Cell]]:
    """Cells of equal seeds; a single reference cell stands for all. Raises `UserError` where no seed is shared."""
    if a[0].kind == "reference":
        return a[:1] * len(b), b
    if b[0].kind == "reference":
        return a, b[:1] * len(a)
    first, second = {cell.seed: cell for cell in a}, {cell.seed: cell for cell in b}
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise UserError(
            f"{name_a!r} and {name_b!r} have no training seed in common",
            why=f"{sorted(first)} and {sorted(second)}",
            fix="measure one of them with the other's seeds",
        )
    return [first[seed] for seed in seeds], [second[seed] for seed in seeds]


def varied(seeds: int) -> str:
    """What an interval over so many training seeds is over."""
    return "prompts and training seeds" if seeds > 1 else "prompts, of one training seed"
