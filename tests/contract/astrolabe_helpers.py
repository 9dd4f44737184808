"""Astrolabe at a step of the test's choice, judged by values of its choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from objective_helpers import collect, make
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.objectives.astrolabe import Astrolabe
from vidalign.rewards.base import CompositeReward


class Given:
    """A reward whose values the test chooses, in order."""

    name = "given"

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        assert len(clips) == len(prompts) == len(self.values)
        return {"given": self.values}


def astrolabe(folder: Path, *overrides: str, prefix: int | None = None) -> tuple[Astrolabe, TrainContext]:
    """The objective at a step that forks after `prefix` chunks."""
    objective, ctx = make(folder, "astrolabe", *[f"objective.{o}" for o in overrides])
    assert isinstance(objective, Astrolabe)
    if prefix is not None:
        ctx.step = next(s for s in range(100) if prefix_of(objective, ctx, s) == prefix)
    return objective, ctx


def prefix_of(objective: Astrolabe, ctx: TrainContext, step: int) -> int:
    ctx.step = step
    return objective.clips.plan(ctx).prefix


def judge(objective: Astrolabe, ctx: TrainContext, values: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reward weights of two groups of four with given rewards."""
    ctx.rewards = CompositeReward({"given": Given(values)}, {"given": 1.0})
    data = collect(objective, ctx)
    return data["reward_weight"], data.metrics
