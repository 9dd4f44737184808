"""AFD, on-policy adversarial flow distillation of a black-box teacher (arXiv 2605.26105).

The teacher gives finished clips and nothing else. One step:
1. `group_size` whole videos a prompt are rolled out by the `old` policy and decoded;
2. the discriminator, a trainable reward with a role, an engine and a phase of its own (`rewards/discriminator.py`),
   takes a Bradley-Terry step on them against teacher clips of the same prompts,
   ``-log sigmoid(D(x_T, y) - D(x_hat, y))``, then scores them; it is warmed up on the initial student;
3. ``A = (D(x_hat, y) - mean_group D) / max(std, std_floor)``, ``w = 1/2 + clip(A, -A_max, A_max) / (2 A_max)``
                                                                                  (`losses/bradley_terry.py`);
4. the videos are noised to the sampler's own levels and predicted again, every chunk on the clean chunks before it:
   ``v+ = (1 - beta) v_old + beta v``, ``v- = (1 + beta) v_old - beta v``, ``v* = noise - x_hat``,
   ``L = w |v+ - v*|^2 + (1 - w) |v- - v*|^2 + lambda |v - v_ref|^2``              (`losses/forward_process.py`);
5. ``old <- old_decay old + (1 - old_decay) current``.
No teacher clip enters the student, no gradient flows through D.

What we changed: the paper leaves the baseline open; at the optimum of D its level is arbitrary for each prompt, so the
baseline is the mean over the group, of at least 4. The standard deviation is that of the centred scores over all
processes and has a floor, because a D that cannot tell clips apart gives noise. One noise level a chunk, not a video.
Rewards other than `discriminator` are logged and must weigh 0; to train on both, use `astrolabe`.
Knobs that matter: the discriminator's learning rate and warm-up, group_size, learning rate, beta, sigma_max, std_floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidalign.engine import distributed
from vidalign.errors import UserError
from vidalign.losses.advantages import group_statistics, reward_weight
from vidalign.losses.bradley_terry import margin_advantage
from vidalign.losses.flow_matching import add_noise
from vidalign.losses.forward_process import forward_process_loss, reference_penalty
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.cost import Cost, StepSizes
from vidalign.rollout import Rollout, RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext


class AFD(Objective):
    name = "afd"
    needs = Needs(rewards=True, discriminator=True, teacher="clips", policies=("old", "reference"), min_group=4)

    @dataclass
    class Config:
        group_size: int = 4
        """Rollouts per prompt; the baseline is their mean score."""
        beta: float = 0.1
        """Step of the implicit policies v+ and v-; the loss minimiser moves by (2w - 1) (v* - v_old) / beta."""
        advantage_clip: float = 5.0
        """A_max: advantages beyond it count as it."""
        std_floor: float = 0.1
        """Least standard deviation, in units of D, by which centred scores are divided: the signal floor."""
        sigma_max: float = 1.0
        """Highest of the sampler's noise levels to train on."""
        kl_weight: float = 1e-4
        """lambda, the factor of ``|v - v_ref|^2``; 0 = no reference forward."""
        updates: int = 1
        """Optimiser steps on one collected batch."""
        old_decay: float = 0.0
        """Decay of the behaviour policy; 0 = every batch is rolled out by the student as it is."""

        def __post_init__(self) -> None:
            for name in ("beta", "advantage_clip", "std_floor"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} must be positive")
            if self.kl_weight < 0:
                raise ValueError("kl_weight must be at least 0")
            if self.updates < 1:
                raise ValueError("updates must be at least 1")
            if not 0 <= self.old_decay <= 1:
                raise ValueError("old_decay must lie in 0..1")

    config: Config

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(updates=self.config.updates),)

    # --- collect ---

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        _check_weights(ctx.reward_weights)
        size, text = self.config.group_size, ctx.text(batch.prompts)
        plan = RolloutPlan(prefix=0, branch=ctx.chunks, group_size=size, record=tuple(range(ctx.chunks)))
        noise = ctx.student.draw_noise(plan, ctx.generators("rollout", batch.ids))
        with ctx.policy("old"), ctx.gathered():
            rollout = ctx.student.rollout(text, plan, noise)
        prompts = [p for p in batch.prompts for _ in range(size)]
        clips = ctx.decode(rollout.latents)
        scores = ctx.score(clips, prompts)
        group = torch.arange(len(batch.prompts)).repeat_interleave(size)
        weight, metrics = self._judge(ctx, scores, group)
        metrics |= {"health/motion/mean": float((clips[:, 1:] - clips[:, :-1]).abs().mean())}
        metrics |= {"health/on_policy_gap/max": self._on_policy_gap(ctx, rollout, text)}
        ctx.show(clips, prompts, scores)
        sample = torch.tensor(batch.ids).repeat_interleave(size) * size + torch.arange(size).repeat(len(batch.prompts))
        tensors = {"x0": rollout.latents, "reward_weight": weight.to(rollout.latents.device), "sample": sample}
        return Experience(tensors, group, text, batch.prompts, metrics=metrics)

    def _judge(
        self, ctx: TrainContext, scores: dict[str, torch.Tensor], group: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Weight w ``[N]`` of this process' videos, with statistics over all processes."""
        here = slice(distributed.rank() * len(group), (distributed.rank() + 1) * len(group))
        groups = int(group.max()) + 1
        group = torch.cat([group + rank * groups for rank in range(ctx.world_size)])
        metrics = {}
        for name, value in scores.items():
            value = ctx.gather(value)
            spread = group_statistics(value, group)[1]
            metrics[f"reward/{name}/mean"] = float(value.nanmean())
            metrics[f"reward/{name}/group_std"] = float(spread.mean())
            if name == "discriminator":
                advantage = margin_advantage(value, group, floor=self.config.std_floor)
                metrics["health/reward_nan/mean"] = float((~value.isfinite()).float().mean())
                metrics["health/zero_std_groups/mean"] = float((spread < 1e-6).float().mean())
        metrics["objective/advantage/max"] = float(advantage.abs().max())
        metrics["objective/advantage_std/mean"] = float(advantage.std(unbiased=False))
        return reward_weight(advantage, self.config.advantage_clip)[here], metrics

    def _on_policy_gap(self, ctx: TrainContext, rollout: Rollout, text: torch.Tensor) -> float:
        """How far the loss' forward is from the rollout on the rollout's own states (last denoising step, first
        video): largest difference over the spread of the prediction."""
        states = [rollout.states[chunk] for chunk in sorted(rollout.states)]
        x_t = torch.cat([state.x_t[:1, -1] for state in states], 1)
        recorded = torch.cat([state.x0[:1, -1] for state in states], 1)
        levels = [torch.full(state.x_t.shape[2:3], state.sigmas[-1], dtype=torch.float64) for state in states]
        sigma = torch.cat(levels).unsqueeze(0).to(x_t.device)
        with ctx.policy("old"):
            replay = ctx.student.predict_x0(x_t, sigma, text[:1], None, clean=rollout.latents[:1])
        return float((replay - recorded).abs().max() / recorded.std().clamp(min=1e-6))

    # --- loss ---

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, config = micro_batch.data, self.config
        x0, weight = data["x0"], data["reward_weight"]
        noise, sigma = self._draw(ctx, data)
        x_t = add_noise(x0, noise, sigma)

        def velocity() -> torch.Tensor:
            return ctx.student.velocity(x_t, sigma, data.text, None, clean=x0)

        current = velocity()
        if config.old_decay == 0 and ctx.update == 0:
            old = current.detach()  # `after_step` has just set old to current: the same numbers, one forward less
        else:
            with torch.no_grad(), ctx.policy("old"):
                old = velocity()
        policy = forward_process_loss(current, old, noise - x0, weight, beta=config.beta).mean()
        metrics = {"objective/policy/mean": policy.detach()}
        if config.kl_weight == 0:
            return LossOut(policy, metrics)
        with torch.no_grad(), ctx.policy("reference"):
            reference = velocity()
        penalty = reference_penalty(current, reference).mean()
        metrics["objective/kl/mean"] = penalty.detach()
        return LossOut(policy + config.kl_weight * penalty, metrics)

    def _draw(self, ctx: TrainContext, data: Experience) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise like x0, and one of the sampler's levels for each chunk, ``[N, F]``."""
        levels = [sigma for sigma in ctx.sigmas if sigma <= self.config.sigma_max]
        if not levels:
            raise UserError(
                f"sigma_max {self.config.sigma_max} leaves no noise level to train on",
                where="objective.sigma_max", why=f"the student's sampler visits {ctx.sigmas}",
                fix=f"use at least {ctx.sigmas[-1]}",
            )  # fmt: skip
        generators = ctx.generators("loss", data["sample"].tolist())
        noise = ctx.normal(data["x0"].shape[1:], generators)
        choice = torch.stack([torch.randint(len(levels), (ctx.chunks,), generator=g) for g in generators])
        sigma = torch.tensor(levels)[choice].repeat_interleave(ctx.chunk_frames, 1)
        return noise, sigma.to(noise.device)

    def cost(self, sizes: StepSizes) -> Cost:
        """Rollout, the replay behind the on-policy gauge, and the current, old and reference forwards of the loss; the
        discriminator says its own."""
        config = self.config
        plan = RolloutPlan(prefix=0, branch=sizes.chunks, group_size=config.group_size)
        clips = sizes.prompts * config.group_size
        policies = (2 + (config.kl_weight > 0)) * config.updates - (config.old_decay == 0)
        forwards = sizes.rollout(plan) + (1 + policies * clips) * sizes.teacher_forcing(sizes.chunks)
        return Cost(forwards=forwards, reward_calls=clips * sizes.rewards)

    def after_step(self, ctx: TrainContext) -> None:
        ctx.policies.lerp("old", "current", self.config.old_decay)


def _check_weights(weights: dict[str, float]) -> None:
    """A reward with a weight would be named and never used."""
    for name, weight in weights.items():
        if name != "discriminator" and weight != 0:
            raise UserError(
                f"afd does not train on the reward {name!r}", where=f"rewards.{name}",
                why="its advantage is the discriminator's",
                fix="give it weight 0 to log it, or use objective astrolabe",
            )  # fmt: skip
