"""Two evaluations on the same prompts, compared: paired differences with intervals over prompts, and their file."""

from __future__ import annotations

import math
from pathlib import Path

from vidalign.evaluation.evaluator import Evaluation
from vidalign.evaluation.intervals import estimate
from vidalign.report.model import EvaluationRow
from vidalign.writing import compact


def compare(before: Evaluation, after: Evaluation, truth: Evaluation | None = None) -> list[EvaluationRow]:
    """One row a metric: means, mean paired difference and its 95 % interval over prompts."""
    assert before.prompts == after.prompts, "a paired difference needs the same prompts"
    rows = []
    for judge, name in after.metrics:
        if (judge, name) not in before.metrics:
            continue
        first, second = before.metrics[judge, name], after.metrics[judge, name]
        change = estimate(second - first)
        rows.append(
            EvaluationRow(
                metric=name,
                before=float(first.nanmean()),
                after=float(second.nanmean()),
                difference=change.mean,
                interval=change.interval,
                group=judge,
                goal=float(truth.metrics[judge, name].nanmean()) if truth else None,
                prompts=int((second - first).isfinite().sum()),
                detectable=change.detectable,
            )
        )
    return rows


def save_evaluation(
    path: Path, before: Evaluation, after: Evaluation, truth: Evaluation | None, header: dict[str, str]
) -> None:
    """Per-prompt values of all of them, with what made them, as JSON; NaN becomes null."""
    table = {
        role: {f"{judge}/{name}": [_number(v) for v in values.tolist()] for (judge, name), values in e.metrics.items()}
        for role, e in (("before", before), ("after", after), ("ground_truth", truth))
        if e is not None
    }
    document = {"header": header, "prompts": after.prompts, "values": table}
    path.write_text(compact(document) + "\n", encoding="utf-8")


def _number(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
