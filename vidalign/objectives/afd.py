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
processes (`advantage_std`: or of each group) and has a floor, because a D that cannot separate clips gives noise.
One noise level a chunk, not a video.
Groups whose spread of D is below the signal floor of all objectives (`trainer.signal_floor`, a share of the running
median spread) weigh 0 and are logged as `health/low_spread_groups`. Both floors are needed: `std_floor` is absolute and
tells that D is blind everywhere, where every group is as large as the median; the signal floor is relative and finds
single groups that `advantage_std: group` would blow up, at whatever scale D has arrived.
Rewards other than `discriminator` are logged and must weigh 0; to train on both, use `astrolabe`.
Knobs that matter: the discriminator's learning rate and warm-up, group_size, learning rate, beta, sigma_max, std_floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.cost import Cost, StepSizes
from vidalign.engine import distributed
from vidalign.errors import UserError
from vidalign.losses.advantages import group_statistics, reward_weight
from vidalign.losses.bradley_terry import margin_advantage
from vidalign.losses.flow_matching import add_noise
from vidalign.losses.forward_process import forward_process_loss, reference_penalty
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase, PolicyRule
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.replay import (
    candidate_ids,
    decay_old,
    old_prediction,
    old_rule,
    on_policy_gap,
    roll_videos,
    sample_sigmas,
    sampler_levels,
)
from vidalign.objectives.parts.scoring import (
    ZERO_SPREAD,
    Advantages,
    advantage_metrics,
    gather_scores,
    group_weights,
    grouped_scores,
    request_groups,
    score_metrics,
)
from vidalign.students.video.rollout import RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent

    Ctx = TrainContext[VideoStudent]


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
        advantage_std: Literal["batch", "group"] = "batch"
        """Whose standard deviation divides centred scores; group: prompts on which D tells much and little weigh
        alike."""
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

    def fit(self, around: Around) -> None:
        if around.sampler:
            sampler_levels(around.sampler, self.config.sigma_max)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(updates=self.config.updates),)

    def policy_rules(self) -> dict[str, PolicyRule]:
        return {"old": old_rule(self.config.old_decay), "reference": "fixed"}

    # --- roll out, then (after the step of D and its judgement) the advantage ---

    def collect(self, ctx: Ctx, batch: Batch) -> Experience:
        _check_weights(ctx.reward_weights)
        size, text = self.config.group_size, ctx.text(batch.prompts)
        rollout = roll_videos(ctx, text, batch.ids, size)
        request, metrics = request_groups(ctx, rollout.latents, batch.prompts)
        metrics["health/on_policy_gap/max"] = on_policy_gap(ctx, rollout, text, 1)
        tensors = {"x0": rollout.latents, "sample": candidate_ids(batch.ids, size)}
        return Experience(tensors, request.group, text, batch.prompts, metrics=metrics, request=request)

    def digest(self, ctx: Ctx, experience: Experience) -> Experience:
        judged, device = self._judge(ctx, grouped_scores(ctx, experience)), experience["x0"].device
        weight = reward_weight(judged.advantage.flatten(), self.config.advantage_clip)
        signal = group_weights(judged).repeat_interleave(self.config.group_size)
        experience.tensors |= {"reward_weight": weight.to(device), "signal": signal.to(device)}
        experience.metrics |= judged.metrics
        return experience

    def _judge(self, ctx: Ctx, scores: dict[str, torch.Tensor]) -> Advantages:
        """What D says of this rank's videos, from scores ``[P, G]``."""
        everyone, group = gather_scores(ctx, scores)
        score = everyone["discriminator"]
        advantage = margin_advantage(score, group, floor=self.config.std_floor, std_of=self.config.advantage_std)
        metrics = score_metrics({"": score, **everyone}, group) | advantage_metrics(score, advantage, group)
        metrics["objective/advantage_std/mean"] = float(advantage.std(unbiased=False))
        spread = group_statistics(score, group)[1]
        has_signal = ctx.signal.has_signal(spread, "discriminator") & (spread > ZERO_SPREAD)
        metrics["health/low_spread_groups/mean"] = float((~has_signal).float().mean())
        shape = (ctx.world_size, *scores["discriminator"].shape)
        mine = (advantage * has_signal[group]).view(shape)[distributed.rank()]
        return Advantages(mine, has_signal.view(shape[:2]), everyone, metrics)

    # --- loss ---

    def loss(self, ctx: Ctx, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, config = micro_batch.data, self.config
        x0, weight = data["x0"], data["reward_weight"]
        noise, sigma = self._draw(ctx, data)
        x_t = add_noise(x0, noise, sigma)

        def velocity() -> torch.Tensor:
            return ctx.student.velocity(x_t, sigma, data.features, None, clean=x0)

        current = velocity()
        old = old_prediction(ctx, velocity, current, config.old_decay)
        policy = (data["signal"] * forward_process_loss(current, old, noise - x0, weight, beta=config.beta)).mean()
        metrics = {"objective/policy/mean": policy.detach()}
        if config.kl_weight == 0:
            return LossOut(policy, metrics)
        with torch.no_grad(), ctx.policy("reference"):
            reference = velocity()
        penalty = reference_penalty(current, reference).mean()
        metrics["objective/kl/mean"] = penalty.detach()
        return LossOut(policy + config.kl_weight * penalty, metrics)

    def _draw(self, ctx: Ctx, data: Experience) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise like x0, and one of the sampler's levels for each chunk, ``[N, F]``."""
        generators = ctx.generators("loss", data["sample"].tolist())
        noise = ctx.normal(data["x0"].shape[1:], generators)
        return noise, sample_sigmas(ctx, generators, ctx.chunks, each=True, sigma_max=self.config.sigma_max)

    def cost(self, sizes: StepSizes) -> Cost:
        """Rollout, the replay behind the on-policy gauge, and the current, old and reference forwards of the loss; the
        discriminator says its own."""
        config = self.config
        plan = RolloutPlan(prefix=0, branch=sizes.chunks, group_size=config.group_size)
        clips = sizes.prompts * config.group_size
        policies = (2 + (config.kl_weight > 0)) * config.updates - (config.old_decay == 0)
        forwards = sizes.rollout(plan) + (1 + policies * clips) * sizes.teacher_forcing(sizes.chunks)
        return Cost(forwards=forwards, reward_calls=clips * sizes.rewards)

    def after_step(self, ctx: Ctx) -> None:
        decay_old(ctx, self.config.old_decay)


def _check_weights(weights: dict[str, float]) -> None:
    """A reward with a weight would be named and never used."""
    for name, weight in weights.items():
        if name != "discriminator" and weight != 0:
            raise UserError(
                f"afd does not train on the reward {name!r}",
                where=f"rewards.{name}",
                why="its advantage is the discriminator's",
                fix="give it weight 0 to log it, or use objective astrolabe",
            )
