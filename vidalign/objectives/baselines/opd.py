"""OPD: on-policy distillation of a language student from a bare teacher. It is GKD (arXiv 2306.13649) with purely
on-policy data, the vanilla baseline of DOPD (arXiv 2606.30626).

One step: the student answers every prompt `group_size` times. Every response token costs ``KL(S || T)`` of the two
next-token distributions, full vocabulary; mean over the tokens of a response, then over responses. The teacher sees
what the student sees. Back-propagated directly: no policy gradient, no clipping.

Knobs that matter: learning rate, group_size, divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts import tokens

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.language import LanguageStudent
    from vidalign.teachers.base import LogitTeacher


class OPD(Objective):
    name = "opd"
    needs = Needs(students=("language",), teacher="logits")

    @dataclass
    class Config(tokens.DistillConfig):
        pass

    config: Config

    def collect(self, ctx: TrainContext[LanguageStudent, LogitTeacher], batch: Batch) -> Experience:
        return tokens.sample(ctx, batch, self.config.group_size)

    def loss(self, ctx: TrainContext[LanguageStudent, LogitTeacher], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        return tokens.single_target_loss(ctx, micro_batch.data, self.config, tokens.TEACHER, None)
