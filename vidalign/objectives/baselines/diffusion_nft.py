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

What we changed: a causal student predicts all chunks in one teacher-forcing forward on the video's clean chunks. Noise
levels are the sampler's own few; rewards are whitened over the batch before they are added up.
Adaptive weights collapse distilled students after some 50 steps (Astrolabe, section 4): that is the baseline.
Knobs that matter: learning rate, group_size, beta, old_decay, kl_weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase, TrainedRole
from vidalign.objectives.parts.forward_process import decay_old, noise_again, old_rule, three_policy_loss
from vidalign.objectives.parts.rollouts import video_groups
from vidalign.objectives.parts.scoring import compute_advantages, grouped_scores, weigh_candidates
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent


class DiffusionNFT(Objective):
    name = "diffusion_nft"
    needs = Needs(rewards=True, min_group=2)
    spreads = True

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
            require(self, "beta", "advantage_clip", above=0)
            require(self, "kl_weight", least=0)
            require(self, "inner_updates", least=1)
            require(self, "old_decay", least=0, most=1)

    config: Config

    def blueprint(self) -> Blueprint:
        old = old_rule(self.config.old_decay)
        return Blueprint({"old": old, "reference": "fixed"}, {"student": TrainedRole(self.config.inner_updates)})

    def collect(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Experience:
        return video_groups(ctx, batch, self.config.group_size, replayed=self.config.group_size)

    def digest(self, ctx: TrainContext[VideoStudent], experience: Experience) -> Experience:
        config, scores = self.config, grouped_scores(ctx, experience)
        judged = compute_advantages(ctx, scores, combination=config.combine, normalise=config.advantage_std)
        weigh_candidates(experience, judged, config.advantage_clip)
        return experience

    def loss(self, ctx: TrainContext[VideoStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        """The adaptive x0 loss of the noised videos, and the penalty of their velocities."""
        config = self.config
        out, _ = three_policy_loss(
            ctx,
            micro_batch.data,
            noise_again(ctx, micro_batch.data, each=False),
            beta=config.beta,
            old_decay=config.old_decay,
            kl_weight=config.kl_weight or None,
            space="x0",
            kl_space="velocity",
            advantage_clip=config.advantage_clip,
        )
        return out

    def after_step(self, ctx: TrainContext[VideoStudent]) -> None:
        decay_old(ctx, self.config.old_decay)
