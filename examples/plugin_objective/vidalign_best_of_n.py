"""Best of n: imitate the best of n own rollouts of every prompt (rejection fine-tuning, RAFT, arXiv 2304.06767).

Loss: flow matching, |velocity - (noise - x0)|^2, on the winner, at the noise levels that the sampler visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidalign.context import Batch, TrainContext
from vidalign.cost import Cost, StepSizes
from vidalign.losses.flow_matching import add_noise, flow_matching_loss
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.students.video.rollout import RolloutPlan


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
        plan = RolloutPlan(prefix=0, branch=ctx.chunks, group_size=n)
        noise = ctx.student.draw_noise(plan, ctx.generators("rollout", batch.ids))
        with ctx.gathered():
            latents = ctx.student.rollout(text, plan, noise).latents  # [count * n, F, C, H, W], groups adjacent
        prompts = [prompt for prompt in batch.prompts for _ in range(n)]
        scores = ctx.score(ctx.decode(latents), prompts)
        reward = sum(weight * scores[name] for name, weight in ctx.reward_weights.items()).reshape(count, n)
        best = reward.nan_to_num(-torch.inf).argmax(1) + n * torch.arange(count, device=reward.device)
        tensors = {"x0": latents[best], "sample": torch.tensor(batch.ids)}
        metrics = {"reward/mean": float(reward.nanmean()), "reward/best/mean": float(reward.flatten()[best].nanmean())}
        return Experience(tensors, torch.arange(count), text, batch.prompts, metrics=metrics)

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        x0, generators = data["x0"], ctx.generators("loss", data["sample"].tolist())
        noise = ctx.normal(x0.shape[1:], generators)
        levels = torch.tensor(ctx.sigmas, device=x0.device)
        sigma = levels[[int(torch.randint(len(levels), (), generator=g)) for g in generators]]
        velocity = ctx.student.velocity(add_noise(x0, noise, sigma), sigma, data.text, None, clean=x0)
        return LossOut(flow_matching_loss(velocity, x0, noise, sigma, sigma_floor=0.0).mean())

    def cost(self, sizes: StepSizes) -> Cost:
        rollout = sizes.rollout(RolloutPlan(prefix=0, branch=sizes.chunks, group_size=self.config.group_size))
        scored = sizes.prompts * self.config.group_size * sizes.rewards
        return Cost(rollout + sizes.prompts * sizes.teacher_forcing(sizes.chunks), scored)
