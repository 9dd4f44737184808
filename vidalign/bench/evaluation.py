"""Evaluation of a student on held-out prompts: the same prompts and noise before and after, paired differences.

`judge_student` generates and judges; `compare` turns two evaluations into rows with 95 % bootstrap intervals over
prompts; `vidalign.runs.evaluate_run` is what ``vidalign evaluate`` calls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.bench.bootstrap import interval
from vidalign.data.prompts import open_prompts
from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.report.model import EvaluationRow
from vidalign.rollout import RolloutPlan
from vidalign.worlds.video.captions import is_caption
from vidalign.worlds.video.judges import AUDITOR, TRAINED, judge_world
from vidalign.worlds.video.teacher import WorldTeacher

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

BATCH = 64
"""Clips generated at once."""
SHOWN = 6
"""Clips kept for the report."""
Metric = tuple[str, str]
"""(judge, name)"""


@dataclass
class Evaluation:
    """Judgement of P prompts; every metric ``[P]`` is the mean over the seeds of a prompt."""

    prompts: list[str]
    metrics: dict[Metric, torch.Tensor]
    clips: torch.Tensor
    """The first clips, ``[SHOWN, F, 3, H, W]`` in [0, 1]."""
    clip_metrics: list[dict[str, float]] = field(default_factory=list)

    def health(self) -> dict[str, float]:
        """What the monitors and the report's curves read; nothing where nothing could be judged."""
        if (AUDITOR, "composite") not in self.metrics:
            return {}
        return {
            "health/held_out/mean": float(self.metrics[AUDITOR, "composite"].mean()),
            "health/held_out_trained/mean": float(self.metrics[TRAINED, "composite"].mean()),
        }


def distinct_prompts(source: str, recipe: Recipe) -> list[str]:
    """The first prompts of a source without repetitions, enough of them to choose the evaluation's from."""
    opened = open_prompts(source, recipe.seed)
    return list(dict.fromkeys(opened.first(4 * min(recipe.evaluation.count, len(opened)))))


def held_out_prompts(recipe: Recipe) -> list[str]:
    """The evaluation prompts that the world can judge; where there is none, those whose clips are shown unjudged."""
    settings = recipe.evaluation
    prompts = distinct_prompts(settings.prompts or recipe.data.eval_prompts, recipe)
    return ([prompt for prompt in prompts if is_caption(prompt)] or prompts)[: settings.count]


@torch.no_grad()
def judge_student(
    generate: Callable[[list[str], list[torch.Generator]], torch.Tensor], prompts: Sequence[str], seeds: int
) -> Evaluation:
    """Generate `seeds` clips for every prompt and judge them; captions of the world only have metrics.

    generate: prompts and one generator each to clips ``[B, F, 3, H, W]`` in [0, 1]; the generators depend on
    prompt and seed only, so two students see the same noise.
    """
    shown: list[torch.Tensor] = []
    metrics: dict[Metric, list[torch.Tensor]] = {}
    judged = all(is_caption(prompt) for prompt in prompts)
    for seed in range(seeds):
        for start in range(0, len(prompts), BATCH):
            part = list(prompts[start : start + BATCH])
            generators = [generator(seed, "evaluation", 0, start + i) for i in range(len(part))]
            clips = generate(part, generators).float().cpu()
            for name, values in (judge_world(clips, part) if judged else {}).items():
                metrics.setdefault(name, []).append(values)
            if len(shown) == 0:
                shown.append(clips[:SHOWN])
    means = {name: torch.cat(values).view(seeds, -1).nanmean(0) for name, values in metrics.items()}
    first = {name: torch.cat(values)[:SHOWN].tolist() for name, values in metrics.items()}
    labels = {"trained": (TRAINED, "composite"), "auditor": (AUDITOR, "composite")}
    kept = [{label: first[name][i] for label, name in labels.items() if judged} for i in range(len(shown[0]))]
    return Evaluation(list(prompts), means, shown[0], kept)


def student_generator(student: Any, features: Any, codec: Any, frames: int) -> Callable[..., torch.Tensor]:
    """A `generate` function of a causal student for `judge_student`; `UserError` unless frames are whole chunks."""
    size = student.spec.cache.chunk_frames
    if frames < 1 or frames % size:
        raise UserError(
            f"cannot make {frames} frames", why=f"the student makes chunks of {size}", fix=f"use a multiple of {size}"
        )
    plan = RolloutPlan(prefix=0, branch=frames // size)

    def generate(prompts: list[str], generators: list[torch.Generator]) -> torch.Tensor:
        text = features(prompts).to(student.device)
        return codec.decode(student.rollout(text, plan, student.draw_noise(plan, generators)).latents)

    return generate


def ground_truth(prompts: Sequence[str], seeds: int, frames: int) -> Evaluation | None:
    """The world's own clips of the prompts, judged like a student's; None where they are no captions of it."""
    if not all(is_caption(prompt) for prompt in prompts):
        return None
    return judge_student(WorldTeacher(frames).clips, prompts, seeds)


def compare(before: Evaluation, after: Evaluation, truth: Evaluation | None = None) -> list[EvaluationRow]:
    """One row a metric: means, mean paired difference and its 95 % bootstrap interval over prompts."""
    assert before.prompts == after.prompts, "a paired difference needs the same prompts"
    rows = []
    for judge, name in after.metrics:
        first, second = before.metrics[judge, name], after.metrics[judge, name]
        rows.append(
            EvaluationRow(
                metric=name,
                before=float(first.nanmean()),
                after=float(second.nanmean()),
                difference=float((second - first).nanmean()),
                interval=interval(second - first),
                group=judge,
                goal=float(truth.metrics[judge, name].nanmean()) if truth else None,
                prompts=int((second - first).isfinite().sum()),
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
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _number(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
