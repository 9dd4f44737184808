"""Supervised training of a language student on written responses: pre-training and the supervised baseline.

Loss: cross-entropy of the response tokens, mean over the tokens of a response, then over responses.
``privileged_share`` of the samples have their privileged text in the user turn. Then the privileged policies of
on-policy distillation (arXiv 2606.30626) are in distribution. Everything else about them is the same.
Knob that matters: ``privileged_share``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidalign.errors import DataError
from vidalign.losses.projected import Written
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts import tokens
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.language import LanguageStudent


class LanguageSFT(Objective):
    name = "lm_sft"
    needs = Needs(students=("language",))

    @dataclass
    class Config:
        privileged_share: float = 0.0
        """Share of the samples whose privileged text the student sees, in [0, 1]."""

        def __post_init__(self) -> None:
            require(self, "privileged_share", least=0, most=1)

    config: Config

    def collect(self, ctx: TrainContext[LanguageStudent], batch: Batch) -> Experience:
        chat = ctx.student.chat
        silent = next((example.prompt for example in batch.prompts if not example.response), None)
        if silent is not None:
            raise DataError(
                "an example has no response to learn from", where=silent[:60], fix="give the data a column 'response'"
            )
        ids, response = chat.responses([example.response for example in batch.prompts])
        draws = ctx.uniform((), ctx.generators("privileged", batch.ids))
        data: Experience = Experience(
            tensors={"ids": ids, "response": response, "privileged": draws < self.config.privileged_share},
            group_index=torch.arange(len(batch.prompts)),
            text=None,
            prompts=batch.prompts,
        )
        tokens.check_pictures(ctx, data)
        return data

    def loss(self, ctx: TrainContext[LanguageStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, student = micro_batch.data, ctx.student
        privileged = data["privileged"].tolist()
        hints = [e.privileged if seen else "" for e, seen in zip(data.prompts, privileged, strict=True)]
        batch = student.compose(data.prompts, data["ids"], data["response"], hints)
        rows = batch.response
        hidden = student.response_hidden(batch)[rows]  # [tokens, D]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weights = (rows.to(wide) / rows.sum(1, keepdim=True))[rows] / len(rows)  # a mean of means
        index = torch.arange(len(hidden), device=hidden.device)
        found = student.distil(hidden, [Written(index, weights, batch.response_ids[rows])])
        return LossOut(
            found.total,
            {
                "objective/cross_entropy/mean": found.total.detach(),
                "objective/token_accuracy/mean": (found.right * weights).sum(),
            },
        )
