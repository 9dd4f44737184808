"""The three axes are independent: AFD's rollout and discriminator with Astrolabe's loss, in a class of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from objective_helpers import sections

from vidalign import registry
from vidalign.objectives import (
    Batch,
    Blueprint,
    Experience,
    LossOut,
    MicroBatch,
    Needs,
    Objective,
    Phase,
    TrainContext,
    compute_advantages,
    grouped_scores,
    noise_again,
    three_policy_loss,
    video_groups,
    weigh_candidates,
)
from vidalign.recipe import load_recipe
from vidalign.testing.recipes import save_video_network
from vidalign.trainer import Trainer


class AFDInX0(Objective):
    """Whole videos judged by the discriminator (AFD), one level a clip and the loss in x0 space (Astrolabe)."""

    name = "afd_in_x0"
    needs = Needs(rewards=True, discriminator=True, teacher="clips", min_group=2)

    @dataclass
    class Config:
        group_size: int = 4
        """Videos per prompt."""

    config: Config

    def blueprint(self) -> Blueprint:
        return Blueprint({"old": "current", "reference": "fixed"})

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        return video_groups(ctx, batch, self.config.group_size)

    def digest(self, ctx: TrainContext, experience: Experience) -> Experience:
        scores = grouped_scores(ctx, experience)
        judged = compute_advantages(ctx, scores, combination="whitened", normalise="batch")
        weigh_candidates(experience, judged, 5.0)
        return experience

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        noised = noise_again(ctx, micro_batch.data, each=False)
        out, _ = three_policy_loss(ctx, micro_batch.data, noised, beta=0.1, old_decay=0, kl_weight=1e-4, space="x0")
        return out


def test_a_rollout_a_judge_and_a_loss_of_different_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    registry.register("objectives", "afd_in_x0")(AFDInX0)
    save_video_network(tmp_path / "student.safetensors", 1)
    (tmp_path / "recipe.yaml").write_text(sections(tmp_path, "afd_in_x0"), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["trainer.prompts_per_step=2", "trainer.learning_rate=1e-2"])
    trainer = Trainer(recipe, tmp_path / "run")
    assert [phase.role for phase in trainer.phases()] == ["discriminator", "student"]
    before = {name: trainer.ctx.policies.weights(name) for name in ("current", "reference")}
    trainer.train_step()
    metrics = trainer.train_step()
    assert metrics["health/discriminator_grad_norm/mean"] > 0 and metrics["health/grad_norm/mean"] > 0
    after = {name: trainer.ctx.policies.weights(name) for name in ("current", "old", "reference")}
    key = "transformer.proj_out.weight"
    assert not torch.equal(after["current"][key], before["current"][key])
    assert torch.equal(after["old"][key], after["current"][key]), "its rule says that it follows the student"
    assert torch.equal(after["reference"][key], before["reference"][key])
    trainer.tracker.close()
