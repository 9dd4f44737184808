"""An objective at work on tiny networks: what it collects, its loss in pieces, and whole runs of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vidalign import registry
from vidalign.bench.budget import Budget
from vidalign.build import build_context, build_objective
from vidalign.context import Batch, TrainContext
from vidalign.cost import Cost
from vidalign.objectives.base import Experience, Objective, Phase
from vidalign.objectives.parts.reduction import reduce_metrics, weighted_metrics
from vidalign.recipe import Recipe, load_recipe
from vidalign.testing.recipes import tiny_recipe
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import Trainer, judge_experience

STEPS = 3
"""Training steps of a run; a resumed one stops before the last."""
SMALL = (f"trainer.steps={STEPS}", "trainer.prompts_per_step=2", "trainer.micro_batch=4", "trainer.save_every=99")


@dataclass
class Outcome:
    """What a run leaves behind."""

    weights: dict[str, Tensor]
    """Every trained weight, by ``ROLE/NAME``."""
    metrics: list[dict[str, float]]
    """What was logged of every step."""
    cost: Cost = field(default_factory=Cost)
    """What was counted."""


@dataclass
class Pieces:
    """Loss, gradient and log of one phase, cut into micro-batches."""

    loss: float
    gradient: dict[str, Tensor]
    metrics: dict[str, float]
    count: int


class Trial:
    """One registered objective with its tiny recipe in `folder`; overrides: ``key=value``, as on the command line."""

    def __init__(self, name: str, overrides: Sequence[str], folder: Path) -> None:
        self.name, self.overrides, self.folder = name, list(overrides), folder
        self.file = folder / f"{name}.yaml"
        content = tiny_recipe(name, registry.get("objectives", name).needs, folder)
        self.file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def settings(self, *more: str) -> list[str]:
        """All overrides; further ones come before those of the author."""
        return [*SMALL, *more, *self.overrides]

    def recipe(self, *more: str) -> Recipe:
        """Its recipe with `settings`."""
        return load_recipe(self.file, self.settings(*more))

    def start(self, *more: str) -> tuple[Objective, TrainContext]:
        """The objective and a context without a log."""
        recipe = self.recipe(*more)
        objective = build_objective(recipe)
        return objective, build_context(recipe, objective, Tracker.silent())

    @cached_property
    def straight(self) -> Outcome:
        """An uninterrupted run, counted."""
        return finished(Trainer(self.recipe(), self.folder / f"{self.name}-straight", callbacks=[Budget()]))

    def interrupted(self) -> Outcome:
        """The same run, stopped before its last step and resumed."""
        run = self.folder / f"{self.name}-resumed"
        first = Trainer(self.recipe(), run)
        logged = [first.train_step() for _ in range(STEPS - 1)]
        first.save()
        first.tracker.close()
        second = finished(Trainer(self.recipe(), run, resume=True))
        return Outcome(second.weights, [*logged, *second.metrics])


def finished(trainer: Trainer) -> Outcome:
    """All steps of a run, without its files at the end."""
    logged = []
    try:
        while not trainer.done:
            logged.append(trainer.train_step())
    finally:
        trainer.tracker.close()
    budgets = [callback for callback in trainer.callbacks.values() if isinstance(callback, Budget)]
    weights = {
        f"{role}/{name}": weight.detach().clone().cpu()
        for role, engine in trainer.ctx.roles.engines.items()
        for name, weight in engine.named_trainable().items()
    }
    return Outcome(weights, logged, budgets[0].counter.total() if budgets else Cost())


def collected(objective: Objective, ctx: TrainContext, prompts: Sequence[Any]) -> Experience:
    """What the objective collects for some prompts, judged and digested."""
    with torch.no_grad():
        experience = objective.collect(ctx, Batch(ctx.step, list(prompts), list(range(len(prompts)))))
    return judge_experience(ctx, objective, experience)


def in_pieces(objective: Objective, ctx: TrainContext, data: Experience, phase: Phase, size: int) -> Pieces:
    """A phase in micro-batches of `size`: sum of the weighted losses, its gradient by name, what is logged."""
    gathered: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ctx.micro_batch, total = size, 0.0
    pieces = list(objective.micro_batches(ctx, data, phase))
    assert abs(sum(piece.weight for piece in pieces) - 1) < 1e-6, "weights of micro-batches add up to 1"
    assert all(len(piece.data) <= size for piece in pieces), f"a micro-batch holds at most {size} samples"
    with ctx.roles.phase(phase.role) as engine:
        for piece in pieces:
            out = objective.loss(ctx, piece, phase)
            engine.backward(out.loss * piece.weight)
            total += float(out.loss.detach()) * piece.weight
            for name, pair in weighted_metrics(out, piece.weight).items():
                gathered[name].append(pair)
        trained = engine.named_trainable().items()
        gradient = {name: p.grad.clone() for name, p in trained if p.grad is not None}
    return Pieces(total, gradient, reduce_metrics(gathered), len(pieces))


@torch.no_grad()
def nudge(network: torch.nn.Module, scale: float = 0.02) -> None:
    """Move the weights of a network, as optimiser steps would; the same way in every call."""
    for n, parameter in enumerate(network.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        parameter.add_(noise.to(parameter), alpha=scale)
