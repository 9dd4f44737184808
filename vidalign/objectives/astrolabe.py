"""Astrolabe: negative-aware forward-process RL for causal few-step students (arXiv 2603.17051).

One step:
1. every prompt's visual history (`prefix` chunks, a random number that all ranks share) is rolled once with the `old`
   policy. Its KV cache is the frozen, detached context, held once and broadcast over the group;
2. from it `group_size` candidate clips are rolled with independent noise and scored;
3. each reward is whitened over the batch, weighted and summed; ``A = R - mean_group(R)``, divided by the batch std;
   ``r = clip(A / A_max, -1, 1) / 2 + 1/2``                                       (`losses/advantages.py`);
4. the clip is noised to one of the student's own *warped* levels and predicted by three policies on that context:
   ``x+ = beta x0_cur + (1 - beta) x0_old``, ``x- = (1 + beta) x0_old - beta x0_cur``,
   ``L = mean[ r |x+ - x0|^2 + (1 - r) |x- - x0|^2 ] + lambda mean_M |x0_cur - x0_ref|^2``
   (`losses/forward_process.py`). M holds every sample (`kl.mode: uniform`) or those that the primary reward ranks
   high and the others low (`selective`, `losses/selective_kl.py`);
5. ``old <- d old + (1 - d) current`` with ``d = min(0.001 step, 0.5)``; ``reference <- current`` when the penalty has
   grown beyond `kl.reset_drift` or after `kl.reset_every` steps.

Streaming long tuning is the same step with videos of several training lengths. The student rolls its cache:
`data.frames: 48`, `student.cache: {window: 12, sink: 3, rope: relative}`, `clip: {chunks: 2, score: clip}`. The history
is streamed (noise drawn and latents dropped chunk by chunk); the window alone is scored, noised and predicted. So the
memory of a step does not depend on the length of the video (`benchmarks/long_tuning.py`).

What we changed: statistics over distinct prompts, a chunk-causal loss on the clean cache, warped levels and whitened
rewards. The released code repeats prompts and adds raw scores, and trains under a frame-causal mask on levels that its
sampler never visits. A clip of several chunks is trained by teacher forcing on its own clean chunks. `score: video`
judges history and clip together, for rewards that cannot read a law of motion from the clip alone. The drift that
resets the reference is relative to the variance of what is predicted, not absolute (0.15 in the released code).
Knobs that matter: learning rate, group_size, space, sigma_min, sigma_max, loss_noise, clip, beta, kl.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from vidalign.cost import Cost, StepSizes
from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase, TrainedRole
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.clip_groups import ClipConfig, ClipGroups
from vidalign.objectives.parts.forward_process import (
    decay_old,
    noise_again,
    old_rule,
    sampler_levels,
    three_policy_loss,
)
from vidalign.objectives.parts.reference import KLConfig, ReferenceControl
from vidalign.objectives.parts.scoring import compute_advantages, grouped_scores, weigh_candidates
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent


class Astrolabe(Objective):
    name = "astrolabe"
    needs = Needs(rewards=True, min_group=2)
    spreads = True

    @dataclass
    class Config:
        group_size: int = 8
        """Candidates per prompt."""
        clip: ClipConfig = field(default_factory=ClipConfig)
        """Which part of the video is a candidate, and what of it is scored."""
        beta: float = 0.1
        """Step of the implicit policies x+ and x-; the loss minimiser moves by (1 - 2r) e / beta."""
        advantage_std: Literal["group", "batch", "none"] = "batch"
        """Which standard deviation divides the advantage."""
        advantage_clip: float = 5.0
        """A_max: advantages beyond it count as it."""
        combine: Literal["whitened", "raw_sum"] = "whitened"
        """How rewards are added up; raw_sum is the released code."""
        space: Literal["x0", "velocity"] = "x0"
        """Space of the loss; x0-space is sigma^2 times velocity-space."""
        sigma_min: float = 0.0
        """Lowest of the sampler's noise levels to train on. At low levels a noised clip is almost visible, so the loss
        regresses good clips to their mean and blurs them (`alpha` leaves 1/2 there)."""
        sigma_max: float = 1.0
        """Highest of them. At high levels a noised clip says little about which candidate it came from, so the
        gradient is mostly noise when batches are small."""
        loss_noise: Literal["sample", "group"] = "sample"
        """What shares the noise and the level of the loss: nothing, or the candidates of a prompt. Their differences
        are then seen through common random numbers."""
        weighting: Literal["none", "adaptive"] = "none"
        """adaptive: DiffusionNFT's division by the branch error; collapses distilled students."""
        kl: KLConfig = field(default_factory=KLConfig)
        """Penalty towards the reference policy."""
        inner_updates: int = 1
        """Optimiser steps on one collected batch."""
        old_decay: float | None = None
        """Constant decay of the old policy; null = the schedule min(0.001 step, 0.5)."""

        def __post_init__(self) -> None:
            if not 0 <= self.sigma_min <= self.sigma_max:
                raise ValueError("sigma_min must lie in 0..sigma_max")
            require(self, "beta", "advantage_clip", above=0)
            require(self, "inner_updates", least=1)
            require(self, "old_decay", least=0, most=1)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.clips = ClipGroups(config.clip, config.group_size)
        self.kl = ReferenceControl(config.kl)

    def fit(self, around: Around) -> None:
        config = self.config
        if around.chunks:
            self.clips.check(around.chunks)
        if config.kl.mode == "selective":
            self.kl.primary(list(around.rewards))
        if around.sampler:
            sampler_levels(around.sampler, config.sigma_max, config.sigma_min)

    def blueprint(self) -> Blueprint:
        policies = {"old": old_rule(self.config.old_decay), "reference": self.kl.rule}
        return Blueprint(policies, {"student": TrainedRole(self.config.inner_updates)})

    def collect(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Experience:
        return self.clips.groups(ctx, batch)

    def digest(self, ctx: TrainContext[VideoStudent], experience: Experience) -> Experience:
        config, scores = self.config, grouped_scores(ctx, experience)
        judged = compute_advantages(ctx, scores, combination=config.combine, normalise=config.advantage_std)
        weigh_candidates(experience, judged, config.advantage_clip)
        held, metrics = self.kl.select(ctx, judged.scores, experience["reward_weight"])
        experience.tensors |= held
        experience.metrics |= metrics
        return experience

    def loss(self, ctx: TrainContext[VideoStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, config = micro_batch.data, self.config
        assert data.context is not None, "the candidates fork from a history, which may be empty"
        noised = noise_again(
            ctx,
            data,
            each=False,
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
            shared=config.group_size if config.loss_noise == "group" else 1,
        )
        out, distance = three_policy_loss(
            ctx,
            data,
            noised,
            beta=config.beta,
            old_decay=config.old_decay,
            kl_weight=None if config.kl.mode == "none" else config.kl.weight,
            space=config.space,
            advantage_clip=config.advantage_clip if config.weighting == "adaptive" else None,
        )
        if distance is not None:
            out.sums = self.kl.sums(distance, data["kl_weight"], noised.target(config.space))
        alphas, out.counts = _alphas(data["reward_weight"], noised.sigma[:, -1])
        out.metrics |= alphas
        return out

    def after_step(self, ctx: TrainContext[VideoStudent]) -> None:
        if ctx.sums:
            self.kl.follow(ctx)
        decay_old(ctx, self.config.old_decay)

    def cost(self, sizes: StepSizes) -> Cost:
        """Rollout, the replay behind the on-policy gauge, and the current, old and reference forwards of the loss."""
        config, plan = self.config, self.clips.plan(sizes)
        clips = sizes.prompts * plan.group_size
        policies = (2 + (config.kl.mode != "none")) * config.inner_updates - (config.old_decay == 0)
        passes = plan.group_size + policies * clips
        forwards = sizes.rollout(plan) + passes * sizes.teacher_forcing(plan.branch)
        return Cost(forwards=forwards, reward_calls=clips * sizes.rewards)

    def state_dict(self) -> dict[str, Any]:
        return self.kl.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl.load_state_dict(state)


def _alphas(weight: torch.Tensor, sigma: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Mean reward weight of the samples ``[N]`` at each noise level, and how many these are."""
    level = sigma.double().round(decimals=2)
    here = {f"objective/alpha_{value:.2f}/mean": level == value for value in level.unique().tolist()}
    return {name: weight[rows].mean() for name, rows in here.items()}, {k: int(rows.sum()) for k, rows in here.items()}
