"""Two evaluations on the same prompts, compared: paired differences with intervals over prompts, and their file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from vidalign.errors import CheckpointError
from vidalign.evaluation.evaluator import Evaluation, Score
from vidalign.evaluation.intervals import estimate
from vidalign.reading import check_object, read_json
from vidalign.report.model import EvaluationRow
from vidalign.writing import compact

NO_CLIPS = torch.empty(0, 0, 3, 0, 0)


def compare(before: Evaluation, after: Evaluation, truth: Evaluation | None = None) -> list[EvaluationRow]:
    """One row a metric: means, mean paired difference and its 95 % interval over prompts."""
    assert before.prompts == after.prompts, "a paired difference needs the same prompts"
    rows = []
    for judge, name in after.metrics:
        if (judge, name) not in before.metrics:
            continue
        first, second = before.metrics[judge, name], after.metrics[judge, name]
        change, goal = estimate(second - first), truth.metrics.get((judge, name)) if truth else None
        rows.append(
            EvaluationRow(
                metric=name,
                before=float(first.nanmean()),
                after=float(second.nanmean()),
                difference=change.mean,
                interval=change.interval,
                group=judge,
                goal=None if goal is None else float(goal.nanmean()),
                prompts=int((second - first).isfinite().sum()),
                detectable=change.detectable,
            )
        )
    return rows


@dataclass(frozen=True)
class Judgement:
    """What an `evaluation.json` holds: the judgement of a student, of the one before training, of the truth."""

    header: dict[str, str]
    """What made it: recipe, seed, commit, machine, settings of the judges."""
    judged: dict[str, Evaluation]
    """`before`, `after` and, where there is one, `ground truth`; without clips and responses."""
    seeds: int | None
    """Outputs a prompt; None in files of earlier versions."""
    texts: bool
    """Whether the student answers with text."""
    student_sha256: str | None
    """Of the judged student, where scores of external suites are compared with it."""


def save_evaluation(
    path: Path,
    before: Evaluation,
    after: Evaluation,
    truth: Evaluation | None,
    header: dict[str, str],
    *,
    seeds: int = 1,
    student_sha256: str | None = None,
) -> None:
    """Per-prompt values of all of them, with what made them, as JSON; NaN becomes null."""
    table = {
        role: {f"{judge}/{name}": [_number(v) for v in values.tolist()] for (judge, name), values in e.metrics.items()}
        for role, e in (("before", before), ("after", after), ("ground_truth", truth))
        if e is not None
    }
    about = {"seeds": seeds, "texts": bool(after.responses), "student_sha256": student_sha256}
    document = {"header": header, **about, "trained": sorted(after.trained), "prompts": after.prompts, "values": table}
    path.write_text(compact(document) + "\n", encoding="utf-8")


def read_evaluation(path: Path) -> Judgement:
    """The judgement in an `evaluation.json`; raises `CheckpointError` for a file that cannot be read."""
    try:
        document = check_object(read_json(path), {"header": dict, "prompts": list, "values": dict})
        trained = frozenset(map(str, document.get("trained", [])))
        prompts = [str(prompt) for prompt in document["prompts"]]
        judged = {
            role.replace("_", " "): Evaluation(prompts, _metrics(values, len(prompts)), NO_CLIPS, trained=trained)
            for role, values in check_object(document["values"], {"before": dict, "after": dict}).items()
        }
        seeds, sha = document.get("seeds"), document.get("student_sha256")
        header = {str(key): str(value) for key, value in document["header"].items()}
        return Judgement(header, judged, seeds, bool(document.get("texts")), sha)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "the evaluation of the run cannot be read",
            where=str(path),
            why=str(error),
            fix="delete it, or write it again with `vidalign evaluate --run RUN`",
        ) from error


def _metrics(values: dict[str, list[float | None]], count: int) -> dict[Score, torch.Tensor]:
    """Values ``[P]`` by judge and name."""
    metrics = {}
    for key, numbers in values.items():
        judge, _, name = key.partition("/")
        if len(numbers) != count:
            raise ValueError(f"{key!r} has {len(numbers)} values for {count} prompts")
        metrics[judge, name] = torch.tensor([math.nan if v is None else float(v) for v in numbers])
    return metrics


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
