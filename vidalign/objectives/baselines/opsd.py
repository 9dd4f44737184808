"""OPSD: on-policy self-distillation (the baseline of that name in DOPD, arXiv 2606.30626). The student's own weights
with privileged text in the prompt are its teacher.

One step: the student answers bare prompts. Every response token is scored twice by the same weights, without and with
the privileged text. The loss is their divergence, and the gradient flows through the bare side only. The target moves
with the student: it is recomputed at every update.

What we changed: reverse KL by default, as for `opd`, so that recipes differ in the target alone.
Knobs that matter: learning rate, data.prompts.privilege (what the target sees), divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts import tokens

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.language import LanguageStudent


class OPSD(Objective):
    name = "opsd"
    needs = Needs(students=("language",), whole_student=True)

    @dataclass
    class Config(tokens.DistillConfig):
        pass

    config: Config

    def collect(self, ctx: TrainContext[LanguageStudent], batch: Batch) -> Experience:
        return tokens.sample(ctx, batch, self.config.group_size)

    def loss(self, ctx: TrainContext[LanguageStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        texts = [data.prompts[group].privileged for group in data.group_index.tolist()]
        return tokens.single_target_loss(ctx, data, self.config, ctx.student, texts)
