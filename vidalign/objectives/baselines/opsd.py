"""OPSD: on-policy self-distillation (the baseline of that name in DOPD, arXiv 2606.30626). The student's own weights
with privileged text in the prompt are its teacher.

One step: the student answers bare prompts. Every response token is scored twice by the same weights, without and with
the privileged text. The loss is their divergence, and the gradient flows through the bare side only. By default the
target moves with the student; `student_target` keeps it frozen, or a moving average.

What we changed: reverse KL by default, as for `opd`, so that recipes differ in the target alone.
Knobs that matter: learning rate, student_target, data.prompts.privilege (what the target sees), divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts import tokens
from vidalign.objectives.parts.student_target import StudentTarget

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.language import LanguageStudent


class OPSD(Objective):
    name = "opsd"
    needs = Needs(students=("language",), privileged=True)

    @dataclass
    class Config(StudentTarget, tokens.DistillConfig):
        def __post_init__(self) -> None:
            tokens.DistillConfig.__post_init__(self)
            StudentTarget.__post_init__(self)

    config: Config

    def blueprint(self) -> Blueprint:
        return Blueprint(self.config.policies)

    def after_step(self, ctx: TrainContext[LanguageStudent]) -> None:
        self.config.follow(ctx)

    def collect(self, ctx: TrainContext[LanguageStudent], batch: Batch) -> Experience:
        return tokens.sample(ctx, batch, self.config.group_size)

    def loss(self, ctx: TrainContext[LanguageStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        texts = [example.privileged for example in data.prompt_of_candidate]
        return tokens.single_target_loss(ctx, data, self.config, self.config.weight_set, texts)
