"""OPD: on-policy distillation of a language student from a bare teacher. It is GKD (arXiv 2306.13649) with purely
on-policy data, the vanilla baseline of DOPD (arXiv 2606.30626).

One step: the student answers every prompt `group_size` times. Every response token costs ``KL(S || T)`` of the two
next-token distributions, full vocabulary; mean over the tokens of a response, then over responses. The teacher sees
what the student sees. Back-propagated directly: no policy gradient, no clipping.

With `reward_weight` the recipe's rewards are a policy gradient beside it (`parts/token_rewards.py`); 0 is plain OPD.

Knobs that matter: learning rate, group_size, divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts import tokens
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.token_rewards import TokenRewards

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.language import LanguageStudent
    from vidalign.teachers.base import LogitTeacher


class OPD(Objective):
    name = "opd"
    needs = Needs(students=("language",), teacher="logits")

    @dataclass
    class Config(TokenRewards, tokens.DistillConfig):
        def __post_init__(self) -> None:
            tokens.DistillConfig.__post_init__(self)
            TokenRewards.__post_init__(self)

    config: Config

    def fit(self, around: Around) -> None:
        self.config.fit_rewards(around, self.config.group_size)

    def collect(self, ctx: TrainContext[LanguageStudent, LogitTeacher], batch: Batch) -> Experience:
        data = tokens.sample(ctx, batch, self.config.group_size)
        self.config.request(ctx, data)
        return data

    def digest(self, ctx: TrainContext[LanguageStudent, LogitTeacher], experience: Experience) -> Experience:
        return self.config.digest(ctx, experience)

    def loss(self, ctx: TrainContext[LanguageStudent, LogitTeacher], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        return tokens.single_target_loss(ctx, micro_batch.data, self.config, tokens.TEACHER, None)
