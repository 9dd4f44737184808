"""Objectives driven by rewards raise the reward that they are given: brightness, on a tiny network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from objective_helpers import PROMPTS, collect, make
from torch import Tensor

from vidalign.context import Batch, TrainContext
from vidalign.objectives.ar_copo import ARCoPO
from vidalign.objectives.base import Objective
from vidalign.provenance import weights_hash
from vidalign.rewards.base import CompositeReward
from vidalign.students.video.rollout import RolloutPlan
from vidalign.students.video.rollout.buffer import Buffer, BufferHeader

SETTINGS = {
    "ar_copo": ("objective.noise_scale=1.0", "objective.clip=0.01"),
    "astrolabe": ("objective.clip.chunks=0", "objective.beta=1", "objective.kl.mode=none", "objective.old_decay=0"),
    "diffusion_nft": ("objective.kl_weight=0", "objective.old_decay=0"),
    "flow_grpo": ("objective.initial_noise=shared",),
}


class Brightness:
    name = "brightness"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"brightness": clips.flatten(1).mean(1)}


def brightness(ctx: TrainContext) -> float:
    """Of 16 fixed videos of the student as it is, before they are cut to [0, 1]."""
    plan = RolloutPlan(0, ctx.chunks, group_size=8)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    rollout = ctx.student.rollout(ctx.text(PROMPTS), plan, ctx.student.draw_noise(plan, generators))
    return float(rollout.latents.mean())


def learn(objective: Objective, ctx: TrainContext, steps: int) -> dict[str, float]:
    """Train; the metrics of the last loss."""
    (phase,) = objective.phases(ctx.step)
    for ctx.step in range(steps):
        ctx.update = 0
        data = collect(objective, ctx)
        with ctx.roles.phase("student") as engine:
            for ctx.update in range(phase.updates):
                for piece in objective.micro_batches(ctx, data, phase):
                    out = objective.loss(ctx, piece, phase)
                    engine.backward(out.loss * piece.weight)
                engine.step()
        objective.after_step(ctx)
    return {name: float(value) for name, value in out.metrics.items()}


def driven(folder: Path, name: str, *overrides: str) -> tuple[Objective, TrainContext]:
    objective, ctx = make(folder, name, "trainer.learning_rate=1e-3", "objective.group_size=8", *overrides)
    ctx.rewards = CompositeReward({"brightness": Brightness()}, {"brightness": 1.0})
    ctx.micro_batch = 64
    return objective, ctx


@pytest.mark.parametrize("name", SETTINGS)
def test_the_reward_rises(name: str, folder: Path) -> None:
    objective, ctx = driven(folder, name, *SETTINGS[name])
    before = brightness(ctx)
    learn(objective, ctx, 8)
    assert brightness(ctx) > before + 0.03


def test_the_clip_keeps_a_student_near_the_one_whose_groups_it_learns_from(folder: Path, tmp_path: Path) -> None:
    objective, ctx = driven(folder, "ar_copo", "objective.pivots=1")
    assert isinstance(objective, ARCoPO)
    header = BufferHeader(weights_hash(ctx.policies.weights("old")), "recipe", 2, objective.fresh.settings(ctx))
    with torch.no_grad():
        forked = objective.fresh.groups(ctx, Batch(0, PROMPTS, [0, 1]))
    assert forked.request is not None
    Buffer.create(tmp_path, header).write([0, 1], forked.groups.judged(ctx.judge(forked.request)), {})
    gaps = {}
    for clip in ("0.001", "null"):
        buffer = f"objective.buffer='{tmp_path}'"
        objective, ctx = driven(folder, "ar_copo", "objective.pivots=1", buffer, f"objective.clip={clip}")
        before = brightness(ctx)
        gaps[clip] = learn(objective, ctx, 8)["objective/ratio_gap/max"]
        assert brightness(ctx) > before
    assert gaps["null"] > 3 * gaps["0.001"]
