"""AFD, on-policy adversarial flow distillation of a black-box teacher (arXiv 2605.26105).

The teacher gives finished clips and nothing else. One step:
1. `group_size` whole videos a prompt are rolled out by the `old` policy and decoded;
2. the discriminator, a trainable reward with a role, an engine and a phase of its own (`rewards/discriminator.py`),
   takes a Bradley-Terry step on them against teacher clips of the same prompts,
   ``-log sigmoid(D(x_T, y) - D(x_hat, y))``, then scores them. It is warmed up on the initial student;
3. ``A = (D(x_hat, y) - mean_group D) / max(std, std_floor)``, ``w = 1/2 + clip(A, -A_max, A_max) / (2 A_max)``
                                                                                  (`losses/bradley_terry.py`);
4. the videos are noised to the sampler's own levels and predicted again, every chunk on the clean chunks before it:
   ``v+ = (1 - beta) v_old + beta v``, ``v- = (1 + beta) v_old - beta v``, ``v* = noise - x_hat``,
   ``L = w |v+ - v*|^2 + (1 - w) |v- - v*|^2 + lambda |v - v_ref|^2``              (`losses/forward_process.py`);
5. ``old <- old_decay old + (1 - old_decay) current``.
No teacher clip enters the student, no gradient flows through D.

What we changed: the paper leaves the baseline open. At the optimum of D its level is arbitrary for each prompt, so the
baseline is the mean over the group, of at least 4. The standard deviation is that of the centred scores over all
processes (`advantage_std`: or of each group). It has a floor, because a D that cannot separate clips gives noise. One
noise level a chunk, not a video.
The signal floor of all objectives (`trainer.signal_floor`) is a share of the running median spread. Groups whose spread
of D is below it weigh 0 and are logged as `health/low_spread_groups`. Both floors are needed. `std_floor` is absolute
and shows that D is blind everywhere, where every group is as large as the median. The signal floor is relative: at any
scale of D it finds single groups that `advantage_std: group` would blow up.
Rewards other than `discriminator` are logged and must weigh 0; to train on both, use `astrolabe`.
Knobs that matter: the discriminator's learning rate and warm-up, group_size, learning rate, beta, sigma_max, std_floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vidalign.losses.bradley_terry import margin_advantage
from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase, TrainedRole
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.forward_process import (
    decay_old,
    noise_again,
    old_rule,
    sampler_levels,
    three_policy_loss,
)
from vidalign.objectives.parts.rollouts import video_groups
from vidalign.objectives.parts.scoring import gather_scores, grouped_scores, keep_signal, weigh_candidates
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent


class AFD(Objective):
    name = "afd"
    needs = Needs(rewards=True, discriminator=True, teacher="clips", min_group=4)
    spreads = True

    @dataclass
    class Config:
        group_size: int = 4
        """Rollouts per prompt; the baseline is their mean score."""
        beta: float = 0.1
        """Step of the implicit policies v+ and v-; the loss minimiser moves by (2w - 1) (v* - v_old) / beta."""
        advantage_clip: float = 5.0
        """A_max: advantages beyond it count as it."""
        advantage_std: Literal["batch", "group"] = "batch"
        """Whose standard deviation divides centred scores; group: prompts on which D says much and little weigh
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
            require(self, "beta", "advantage_clip", "std_floor", above=0)
            require(self, "kl_weight", least=0)
            require(self, "updates", least=1)
            require(self, "old_decay", least=0, most=1)

    config: Config

    def fit(self, around: Around) -> None:
        if around.sampler:
            sampler_levels(around.sampler, self.config.sigma_max)

    def blueprint(self) -> Blueprint:
        old = old_rule(self.config.old_decay)
        return Blueprint({"old": old, "reference": "fixed"}, {"student": TrainedRole(self.config.updates)})

    def collect(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Experience:
        """Roll out with `old`; then the trainer takes the step of D on these videos and lets it judge them."""
        return video_groups(ctx, batch, self.config.group_size)

    def digest(self, ctx: TrainContext[VideoStudent], experience: Experience) -> Experience:
        """The advantage of every video, from what D says of it."""
        scores, group = gather_scores(ctx, grouped_scores(ctx, experience))
        score = scores["discriminator"]
        advantage = margin_advantage(score, group, floor=self.config.std_floor, std_of=self.config.advantage_std)
        judged = keep_signal(ctx, scores, group, advantage, reward=score, total=score, parts={"discriminator": score})
        judged.metrics["objective/advantage_std/mean"] = float(advantage.std(unbiased=False))
        weigh_candidates(experience, judged, self.config.advantage_clip)
        return experience

    def loss(self, ctx: TrainContext[VideoStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        """``w |v+ - v*|^2 + (1 - w) |v- - v*|^2 + lambda |v - v_ref|^2`` of the noised videos."""
        data, config = micro_batch.data, self.config
        noised = noise_again(ctx, data, each=True, sigma_max=config.sigma_max)
        weight = config.kl_weight or None
        return three_policy_loss(ctx, data, noised, beta=config.beta, old_decay=config.old_decay, kl_weight=weight)[0]

    def after_step(self, ctx: TrainContext[VideoStudent]) -> None:
        decay_old(ctx, self.config.old_decay)
