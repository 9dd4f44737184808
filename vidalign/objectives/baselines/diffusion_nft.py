"""DiffusionNFT on whole videos (arXiv 2509.16117): the baseline that Astrolabe shortens to a clip and stabilises.

One step:
1. every prompt gets `group_size` independent videos, rolled with `old` and scored;
2. ``A = R - mean_group(R)``, divided by a std; ``r = clip(A / A_max, -1, 1) / 2 + 1/2``   (`losses/advantages.py`);
3. each video is noised to one of the student's levels and predicted by `current`, `old` and `reference`:
   ``x+ = beta x0_cur + (1 - beta) x0_old``, ``x- = (1 + beta) x0_old - beta x0_cur``,
   ``L = A_max / beta mean[ r |x+ - x0|^2 / w+ + (1 - r) |x- - x0|^2 / w- ]`` with the detached weights
   ``w+- = max(mean |x+- - x0|, 1e-5)`` of every video                           (`losses/forward_process.py`),
   plus ``kl_weight |v_cur - v_ref|^2`` of the velocities, which is ``1 / sigma^2`` times that of x0;
4. ``old <- d old + (1 - d) current`` with ``d = min(0.001 step, 0.5)``.

What we changed: a causal student predicts all chunks in one teacher-forcing forward on the video's clean chunks; noise
levels are the sampler's own few; rewards are whitened over the batch before they are added up.
Adaptive weights collapse distilled students after some 50 steps (Astrolabe, section 4): that is the baseline.
Knobs that matter: learning rate, group_size, beta, old_decay, kl_weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.cost import Cost, StepSizes
from vidalign.losses.advantages import reward_weight
from vidalign.losses.flow_matching import add_noise, expand_sigma
from vidalign.losses.forward_process import forward_process_loss, reference_penalty
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase, PolicyRule
from vidalign.objectives.parts.replay import (
    candidate_ids,
    decay_old,
    old_rule,
    on_policy_gap,
    roll_videos,
    sample_sigmas,
)
from vidalign.objectives.parts.scoring import compute_advantages, group_weights, grouped_scores, request_groups
from vidalign.students.video.rollout import RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent

    Ctx = TrainContext[VideoStudent]


class DiffusionNFT(Objective):
    name = "diffusion_nft"
    needs = Needs(rewards=True, policies=("old", "reference"), min_group=2)

    @dataclass
    class Config:
        group_size: int = 12
        """Videos per prompt."""
        beta: float = 1.0
        """Step of the implicit policies x+ and x-."""
        advantage_std: Literal["group", "batch", "none"] = "batch"
        """Which standard deviation divides the advantage."""
        advantage_clip: float = 5.0
        """A_max: advantages beyond it count as it."""
        combine: Literal["whitened", "raw_sum"] = "whitened"
        """How rewards are added up."""
        kl_weight: float = 1e-4
        """Factor of `|v_cur - v_ref|^2`, velocities as in the paper; 0 leaves the reference out."""
        inner_updates: int = 1
        """Optimiser steps on one set of videos."""
        old_decay: float | None = None
        """Constant decay of the old policy; null = the schedule min(0.001 step, 0.5)."""

        def __post_init__(self) -> None:
            for name in ("beta", "advantage_clip"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} must be positive")
            if self.kl_weight < 0:
                raise ValueError("kl_weight must not be negative")
            if self.inner_updates < 1:
                raise ValueError("inner_updates must be at least 1")
            if self.old_decay is not None and not 0 <= self.old_decay <= 1:
                raise ValueError("old_decay must lie in 0..1")

    config: Config

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(updates=self.config.inner_updates),)

    def policy_rules(self) -> dict[str, PolicyRule]:
        return {"old": old_rule(self.config.old_decay), "reference": "fixed"}

    def collect(self, ctx: Ctx, batch: Batch) -> Experience:
        size, text = self.config.group_size, ctx.text(batch.prompts)
        rollout = roll_videos(ctx, text, batch.ids, size)
        request, metrics = request_groups(ctx, rollout.latents, batch.prompts)
        metrics["health/on_policy_gap/max"] = on_policy_gap(ctx, rollout, text, size)
        tensors = {"x0": rollout.latents, "sample": candidate_ids(batch.ids, size)}
        return Experience(tensors, request.group, text, batch.prompts, metrics=metrics, request=request)

    def digest(self, ctx: Ctx, experience: Experience) -> Experience:
        config, device = self.config, experience["x0"].device
        scores = grouped_scores(ctx, experience)
        judged = compute_advantages(ctx, scores, combination=config.combine, normalise=config.advantage_std)
        weight = reward_weight(judged.advantage.flatten(), config.advantage_clip)
        signal = group_weights(judged).repeat_interleave(config.group_size)
        experience.tensors |= {"reward_weight": weight.to(device), "signal": signal.to(device)}
        experience.metrics |= judged.metrics
        return experience

    def loss(self, ctx: Ctx, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, config = micro_batch.data, self.config
        x0 = data["x0"]
        generators = ctx.generators("loss", data["sample"].tolist())
        noise = ctx.normal(x0.shape[1:], generators)
        sigma = sample_sigmas(ctx, generators, ctx.chunks, each=False)
        x_t = add_noise(x0, noise, sigma)

        def velocity() -> torch.Tensor:
            return ctx.student.velocity(x_t, sigma, data.features, None, clean=x0)

        def x0_of(velocity: torch.Tensor) -> torch.Tensor:
            return x_t - expand_sigma(sigma, x_t) * velocity

        current = velocity()
        with torch.no_grad(), ctx.policy("old"):
            old = velocity()
        policy = forward_process_loss(
            x0_of(current),
            x0_of(old),
            x0,
            data["reward_weight"],
            beta=config.beta,
            advantage_clip=config.advantage_clip,
        )
        policy = (data["signal"] * policy).mean()
        metrics = {"objective/policy/mean": policy.detach()}
        if config.kl_weight == 0:
            return LossOut(policy, metrics)
        with torch.no_grad(), ctx.policy("reference"):
            reference = velocity()
        penalty = reference_penalty(current, reference).mean()
        metrics["objective/kl/mean"] = penalty.detach()
        return LossOut(policy + config.kl_weight * penalty, metrics)

    def cost(self, sizes: StepSizes) -> Cost:
        """Rollout, the replay behind the on-policy gauge, and the current, old and reference forwards of the loss."""
        plan = RolloutPlan(prefix=0, branch=sizes.chunks, group_size=self.config.group_size)
        clips = sizes.prompts * plan.group_size
        policies = (2 + (self.config.kl_weight > 0)) * self.config.inner_updates
        passes = plan.group_size + policies * clips
        forwards = sizes.rollout(plan) + passes * sizes.teacher_forcing(sizes.chunks)
        return Cost(forwards=forwards, reward_calls=clips * sizes.rewards)

    def after_step(self, ctx: Ctx) -> None:
        decay_old(ctx, self.config.old_decay)
