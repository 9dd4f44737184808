"""Objectives on networks of one layer, and the ways in which the tests look at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from vidalign import registry
from vidalign.build import build_context, build_objective
from vidalign.context import TrainContext
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Objective, Phase
from vidalign.recipe import load_recipe
from vidalign.testing.recipes import GROUP as GROUP
from vidalign.testing.recipes import tiny_recipe
from vidalign.testing.trial import collected, in_pieces
from vidalign.testing.trial import nudge as nudge
from vidalign.tracking.tracker import Tracker
from vidalign.worlds.video import captions

BUILT_IN = [name for name, source in registry.names("objectives").items() if source == "vidalign"]
NAMES = [name for name in BUILT_IN if "video" in registry.get("objectives", name).needs.students]
PROMPTS = list(captions.prompts("basic/train")[:2])
CHUNK = 3


def sections(folder: Path, name: str) -> str:
    """A recipe that gives the objective what it needs."""
    return yaml.safe_dump(tiny_recipe(name, registry.get("objectives", name).needs, folder), sort_keys=False)


def make(folder: Path, name: str, *overrides: str) -> tuple[Objective, TrainContext]:
    file = folder / f"{name}.yaml"
    file.write_text(sections(folder, name), encoding="utf-8")
    recipe = load_recipe(file, list(overrides))
    objective = build_objective(recipe)
    return objective, build_context(recipe, objective, Tracker.silent())


def collect(objective: Objective, ctx: TrainContext, prompts: Sequence[str] = PROMPTS) -> Experience:
    return collected(objective, ctx, prompts)


def network_of(ctx: TrainContext, role: str = "student") -> Any:
    return ctx.roles.engines[role].network


def whole(objective: Objective, ctx: TrainContext, data: Experience, role: str = "student") -> LossOut:
    """The loss of all samples in one piece."""
    phase = next(p for p in objective.phases(ctx.step) if p.role == role)
    with ctx.roles.phase(role):
        return objective.loss(ctx, MicroBatch(data, 1.0), phase)


def logged(objective: Objective, ctx: TrainContext, data: Experience, phase: Phase, size: int) -> dict[str, float]:
    """What the trainer logs of a phase in micro-batches of `size`."""
    return in_pieces(objective, ctx, data, phase, size).metrics


def accumulate(
    objective: Objective, ctx: TrainContext, data: Experience, phase: Phase, size: int
) -> tuple[float, dict[str, Tensor], int]:
    """Weighted sum of the losses of all micro-batches, its gradient, and their number."""
    pieces = in_pieces(objective, ctx, data, phase, size)
    return pieces.loss, pieces.gradient, pieces.count
