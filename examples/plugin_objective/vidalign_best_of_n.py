"""Best of n: imitate the best of n own rollouts of every prompt (rejection fine-tuning, RAFT, arXiv 2304.06767).

Loss: flow matching, |velocity - (noise - x0)|^2, on the winner, at the noise levels that the sampler visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidalign.losses import flow_matching_loss
from vidalign.objectives import (
    Batch,
    Experience,
    LossOut,
    MicroBatch,
    Needs,
    Objective,
    Phase,
    TrainContext,
    noise_again,
    roll_videos,
)


class BestOfN(Objective):
    name = "best_of_n"
    needs = Needs(rewards=True, min_group=2)

    @dataclass
    class Config:
        group_size: int = 4
        """Rollouts per prompt, the best of which is imitated."""

    config: Config

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        n, count = self.config.group_size, len(batch.prompts)
        text = ctx.text(batch.prompts)
        latents = roll_videos(ctx, text, batch.ids, n).latents  # [count * n, F, C, H, W], groups adjacent
        prompts = [prompt for prompt in batch.prompts for _ in range(n)]
        scores = ctx.score(ctx.decode(latents), prompts)
        reward = sum(weight * scores[name] for name, weight in ctx.reward_weights.items()).reshape(count, n)
        best = reward.nan_to_num(-torch.inf).argmax(1) + n * torch.arange(count, device=reward.device)
        tensors = {"x0": latents[best], "sample": torch.tensor(batch.ids)}
        metrics = {"reward/mean": float(reward.nanmean()), "reward/best/mean": float(reward.flatten()[best].nanmean())}
        return Experience(tensors, torch.arange(count), text, batch.prompts, metrics=metrics)

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        noised = noise_again(ctx, data, each=False)
        velocity = ctx.student.velocity(noised.x_t, noised.sigma, data.features, None, clean=noised.x0)
        return LossOut(flow_matching_loss(velocity, noised.x0, noised.noise, noised.sigma, sigma_floor=0.0).mean())
