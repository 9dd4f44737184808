"""Plain adversarial imitation of a black-box teacher: the sparse alternative that AFD (arXiv 2605.26105) is compared
with. Self-rollouts and exit steps are those of Self-Forcing's GAN variant (arXiv 2506.08009).

One step:
1. the student rolls out whole videos. Each draws one exit step, and its generated video x0 is what the sampler
   predicted at that step of every chunk (`objectives/baselines/dmd.py`);
2. the discriminator, a trainable reward with a phase of its own (`rewards/discriminator.py`), takes a Bradley-Terry
   step on those videos against teacher clips of the same prompts;
3. the exit steps are predicted again with gradient, decoded, and scored by the frozen discriminator D:
   ``L = -log sigmoid(D(x0, y) - D(x_T, y))``, which is differentiated through D, the rounding to bytes (straight
   through) and the decoder.

What we changed (the paper gives no details of its baseline): a relativistic loss, the mirror of the discriminator's; no
gradient penalty. The discriminator is the one that AFD uses, so that the two differ in the student's update only. Needs
a discriminator that can be differentiated (`spatiotemporal`). Rewards other than `discriminator` are logged.
Knobs that matter: learning rate, the discriminator's learning rate and warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidalign import registry
from vidalign.cost import Cost, StepSizes
from vidalign.losses.bradley_terry import bradley_terry_loss
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.baselines.dmd import exits
from vidalign.objectives.parts.rollouts import replay_gap
from vidalign.objectives.parts.scoring import grouped_scores, request_groups
from vidalign.rewards.discriminator import DiscriminatorReward
from vidalign.students.video.rollout import RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudent


class GAN(Objective):
    name = "gan"
    needs = Needs(rewards=True, discriminator=True, teacher="clips")

    @dataclass
    class Config:
        """No settings: what there is to choose stands in the sections `discriminator` and `trainer`."""

    @classmethod
    def check(cls, draft: Draft) -> None:
        super().check(draft)
        chosen = draft.recipe.discriminator
        if chosen is not None and chosen.name and not registry.get("discriminators", chosen.name).differentiable:
            what, why = f"gan cannot be trained with the discriminator {chosen.name!r}", "its scores have no gradient"
            draft.refuse(what, "discriminator.name", why, "use spatiotemporal, or objective afd")

    def collect(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Experience:
        data, _ = exits(ctx, batch)
        data.request, data.metrics = request_groups(ctx, data["x0"], batch.prompts)
        return data

    def digest(self, ctx: TrainContext[VideoStudent], experience: Experience) -> Experience:
        """The scores are logged; the loss asks the discriminator again, with gradient."""
        for name, value in grouped_scores(ctx, experience).items():
            experience.metrics[f"reward/{name}/mean"] = float(ctx.gather(value.flatten()).nanmean())
        experience.metrics["reward/mean"] = experience.metrics["reward/discriminator/mean"]  # all that is trained on
        return experience

    def loss(self, ctx: TrainContext[VideoStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        x0 = ctx.student.predict_x0(data["x_t"], data["sigma"], data.features, None, clean=data["latents"])
        discriminator = _discriminator(ctx)  # frozen: this is the student's phase
        clips = ctx.decode(x0)
        score = discriminator.judge(clips, data.prompts)
        with torch.no_grad():
            draws = ctx.generators("teacher", data["sample"].tolist())
            winner = discriminator.judge(discriminator.teacher_clips(data.prompts, draws, clips), data.prompts)
        recorded = data["x0"]
        metrics = {
            "health/on_policy_gap/max": replay_gap(x0.detach(), recorded),
            "objective/margin/mean": (winner - score).detach().mean(),
        }
        return LossOut(bradley_terry_loss(score - winner).mean(), metrics)

    def cost(self, sizes: StepSizes) -> Cost:
        """Rollout and one replay of every video; the teacher's clips of the loss. The discriminator says its own."""
        rollout = sizes.rollout(RolloutPlan(prefix=0, branch=sizes.chunks))
        return Cost(
            forwards=rollout + sizes.prompts * sizes.teacher_forcing(sizes.chunks),
            reward_calls=sizes.prompts * sizes.rewards,
            teacher_calls=sizes.prompts,
        )


def _discriminator(ctx: TrainContext[VideoStudent]) -> DiscriminatorReward:
    reward = ctx.rewards.rewards["discriminator"] if ctx.rewards is not None else None
    assert isinstance(reward, DiscriminatorReward), "the recipe is checked for it"
    return reward
