"""Distribution matching distillation of a causal few-step student by self-rollout (Self-Forcing, arXiv 2506.08009;
DMD2, arXiv 2405.14867).

One step:
1. the student rolls out whole videos with its own cached chunks; every sampler state is kept;
2. each video draws one exit step k. Its generated video x0 is what the sampler predicted at step k of every chunk;
3. phase `fake_score`: a copy of the teacher learns those videos by flow matching, `fake_score.updates` times with
   fresh noise: ``|v(x_t, sigma) - (noise - x0)|^2``                           (`losses/flow_matching.py`);
4. phase `student`: step k of all chunks is predicted again with gradient, in one teacher-forcing forward on the
   rollout's clean chunks. x0 is noised to a random level and denoised by the teacher and the fake score;
   ``dL/dx0 = (x0_fake - x0_real) / mean|x0 - x0_real|``                       (`losses/distribution_matching.py`).
   The real score is the teacher under `teacher.guidance` (`students/video/guidance.py`), the fake score is not guided,
   as in the released code. Guidance of the velocity is guidance of x0.

What we changed: the rollout runs to its last step and its clean chunks are the history of every exit step. (The
released code stops the rollout at the exit step, which makes half-denoised chunks the history.) The weights that turn
clean chunks into keys and values are trained too, as in teacher forcing (the released cache is detached). The exit step
is drawn per video, not per batch; the fake score's updates share one rollout with the student's. With
`fake_score.adapter` the fake score is a LoRA on the teacher's own frozen weights instead of a copy of them.
Knobs that matter: learning rate, fake_score.learning_rate, fake_score.updates, shift, teacher.guidance.scale.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vidalign.engine.config import AdapterConfig
from vidalign.losses.distribution_matching import distribution_matching_loss
from vidalign.losses.flow_matching import add_noise, expand_sigma, flow_matching_loss, warp_sigma
from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase, TrainedRole
from vidalign.objectives.parts.rollouts import replay_gap, roll_videos, states_at
from vidalign.objectives.parts.scoring import motion
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudent
    from vidalign.students.video.rollout import Rollout
    from vidalign.teachers.base import VelocityTeacher

    Context = TrainContext[VideoStudent, VelocityTeacher]


@dataclass
class FakeScoreAdapter:
    """A LoRA on every linear layer of the blocks."""

    rank: int = 64
    """Rank of the low-rank update."""
    alpha: float = 64.0
    """The update is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        require(self, "rank", least=1)
        require(self, "alpha", above=0)


@dataclass
class FakeScoreConfig:
    """How the network that models the student's own distribution is trained."""

    updates: int = 5
    """Optimiser steps before each step of the student, on the same videos with fresh noise."""
    learning_rate: float = 1e-4
    """Peak learning rate; all other optimiser settings are those of the trainer section."""
    sigma_floor: float = 0.2
    """Levels below it count less, as (sigma / floor)^2; 0 is the plain loss."""
    adapter: FakeScoreAdapter | None = None
    """Train a LoRA on the teacher's frozen weights, which are held once; null = train a full copy of the teacher."""

    def __post_init__(self) -> None:
        require(self, "updates", least=1)
        require(self, "learning_rate", above=0)


class DMD(Objective):
    name = "dmd"
    needs = Needs(teacher="velocity")

    @dataclass
    class Config:
        fake_score: FakeScoreConfig = field(default_factory=FakeScoreConfig)
        """Training of the fake score."""
        shift: float = 2.0
        """Timestep shift of the levels at which the scores are compared and the fake score learns. Above 1 it favours
        high noise, where layout and motion are decided."""
        sigma_min: float = 0.02
        """Least of those levels: below it the scores differ by noise only."""
        sigma_max: float = 0.98
        """Greatest of those levels: above it the teacher sees little but the caption."""

        def __post_init__(self) -> None:
            require(self, "shift", above=0)
            if not 0 < self.sigma_min < self.sigma_max <= 1:
                raise ValueError("sigma_min must lie above 0 and below sigma_max, which is at most 1")

    config: Config

    @classmethod
    def check(cls, draft: Draft) -> None:
        super().check(draft)
        engine, config = draft.recipe.engine, draft.recipe.objective.config
        shares = isinstance(config, cls.Config) and config.fake_score.adapter is not None
        if shares and engine.name == "deepspeed" and engine.zero_stage == 3 and draft.sound("engine"):
            why = "ZeRO-3 divides the weights of each network, and these are the weights of two"
            fix = "use zero_stage: 2, or leave the adapter out"
            draft.refuse("the fake score's adapter does not run under ZeRO-3", "objective.fake_score.adapter", why, fix)

    def blueprint(self) -> Blueprint:
        own, adapter = self.config.fake_score, None
        if own.adapter is not None:
            adapter = AdapterConfig(own.adapter.rank, own.adapter.alpha)
        make = _full_fake_score if adapter is None else _frozen_fake_score
        fake_score = TrainedRole(own.updates, make, {"learning_rate": own.learning_rate}, adapter)
        return Blueprint(roles={"fake_score": fake_score, "student": TrainedRole()})

    # --- collect ---

    def collect(self, ctx: Context, batch: Batch) -> Experience:
        data, rollout = exits(ctx, batch)
        clips = ctx.decode(rollout.latents)
        ctx.show(clips, batch.prompts, {})
        data.metrics = motion(clips)
        return data

    # --- loss ---

    def loss(self, ctx: Context, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        return self._fake_score_loss(ctx, data) if phase.role == "fake_score" else self._student_loss(ctx, data)

    def _fake_score_loss(self, ctx: Context, data: Experience) -> LossOut:
        """Flow matching on the student's videos, every frame at one level."""
        noise, sigma = self._draw(ctx, data, "fake_score")
        x_t = add_noise(data["x0"], noise, sigma)
        velocity = ctx.roles.module("fake_score").bidirectional(x_t, sigma, data.features)
        floor = self.config.fake_score.sigma_floor
        return LossOut(flow_matching_loss(velocity, data["x0"], noise, sigma, sigma_floor=floor).mean())

    def _student_loss(self, ctx: Context, data: Experience) -> LossOut:
        """One forward of the student, all chunks at their exit step; the two scores give the gradient at its end."""
        x0 = ctx.student.predict_x0(data["x_t"], data["sigma"], data.features, None, clean=data["latents"])
        noise, sigma = self._draw(ctx, data, "scores")
        with torch.no_grad():
            x_t = add_noise(x0, noise, sigma)
            level = expand_sigma(sigma, x_t)
            real = x_t - level * ctx.teacher.velocity(x_t, sigma, data.features)
            fake = x_t - level * ctx.roles.module("fake_score").bidirectional(x_t, sigma, data.features)
        replayed, recorded = x0.detach(), data["x0"]
        metrics = {
            "objective/teacher_gap/mean": (replayed - real).abs().mean(),
            "objective/score_gap/mean": (fake - real).abs().mean(),
            "health/on_policy_gap/max": replay_gap(replayed, recorded),
        }
        return LossOut(distribution_matching_loss(x0, fake, real).mean(), metrics)

    def _draw(self, ctx: Context, data: Experience, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise like x0 and one level ``[N]`` a video."""
        generators = ctx.generators(purpose, data["sample"].tolist())
        noise = ctx.normal(data["x0"].shape[1:], generators)
        uniform = ctx.uniform((), generators)
        return noise, warp_sigma(uniform, self.config.shift).clamp(self.config.sigma_min, self.config.sigma_max)


def _full_fake_score(student: Any, teacher: Any) -> Any:
    """It begins as the teacher: the student's samples are not far from the teacher's."""
    fake_score = copy.deepcopy(teacher.model).requires_grad_(True)
    fake_score.gradient_checkpointing(student.base.is_gradient_checkpointing)
    return fake_score


def _frozen_fake_score(student: Any, teacher: Any) -> Any:
    """The teacher's layers again around the very same weights, for an adapter that the teacher does not get."""
    fake_score = copy.deepcopy(teacher.model, {id(weight): weight for weight in teacher.model.parameters()})
    fake_score.gradient_checkpointing(student.base.is_gradient_checkpointing)
    return fake_score


def exits(ctx: Context, batch: Batch) -> tuple[Experience, Rollout]:
    """One video a prompt by the student, at its exit step: tensors of `states_at`, and sample ``[P]``."""
    text = ctx.text(batch.prompts)
    rollout = roll_videos(ctx, text, batch.ids)
    draws = ctx.uniform((), ctx.generators("exit", batch.ids))
    tensors = states_at(rollout, draws) | {"sample": torch.tensor(batch.ids)}
    return Experience(tensors, torch.arange(len(batch.prompts)), text, batch.prompts), rollout
