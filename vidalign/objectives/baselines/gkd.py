"""GKD: generalised knowledge distillation of a language student (arXiv 2306.13649, algorithm 1).

One step: a share `on_policy` of the samples are answered by the student, the others take the written response of the
data. Every response token costs ``JSD(beta)`` of student and bare teacher (equation 1), full vocabulary; mean over the
tokens of a response, then over responses.

What we changed: the coin is thrown per sample, not per batch.
Knobs that matter: learning rate, beta, on_policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.errors import DataError
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts import tokens
from vidalign.ranges import require

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import Batch, TrainContext
    from vidalign.students.language import LanguageStudent
    from vidalign.teachers.base import LogitTeacher

    Context = TrainContext[LanguageStudent, LogitTeacher]


class GKD(Objective):
    name = "gkd"
    needs = Needs(students=("language",), teacher="logits")

    @dataclass
    class Config(tokens.DistillConfig):
        divergence: Literal["reverse_kl", "forward_kl", "js", "jsd"] = "jsd"
        """Of student and target, see `losses/divergences.py`."""
        on_policy: float = 0.5
        """Share of samples answered by the student, in 0..1; the others need a written response in the data."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self, "on_policy", least=0, most=1)

    config: Config

    def collect(self, ctx: Context, batch: Batch) -> Experience:
        data = tokens.sample(ctx, batch, self.config.group_size)
        draws = ctx.uniform((), ctx.generators("on_policy", data["sample"].tolist()))
        written = draws.cpu() >= self.config.on_policy
        if written.any():
            data.tensors |= self._written(ctx, data, written)
        data.metrics["objective/on_policy/mean"] = float(1 - ctx.gather(written.double()).mean())
        return data

    def _written(self, ctx: Context, data: Experience, written: Tensor) -> dict[str, Tensor]:
        """The tensors of the rollout with the responses of the data in the rows `written`."""
        chat = ctx.student.chat
        examples = [example for example, own in zip(data.prompt_of_candidate, written.tolist(), strict=True) if own]
        silent = next((example.prompt for example in examples if not example.response), None)
        if silent is not None:
            raise DataError(
                "an example has no response for off-policy distillation",
                where=silent[:60],
                fix="give the data a column 'response', or set objective.on_policy=1",
            )
        ids, mask = chat.responses([e.response for e in examples])
        width = max(ids.shape[1], data["response"].shape[1])
        new = {"response_ids": ids, "response": mask, "logp": torch.full(ids.shape, math.nan)}
        out = {}
        for name, values in new.items():
            out[name] = torch.nn.functional.pad(data[name], (0, width - data[name].shape[1]))
            row = torch.nn.functional.pad(values, (0, width - values.shape[1]))
            out[name][written.to(out[name].device)] = row.to(out[name])
        return out

    def loss(self, ctx: Context, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        return tokens.single_target_loss(ctx, micro_batch.data, self.config, tokens.TEACHER, None)
