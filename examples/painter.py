"""A student of single pictures, the objective that trains it, and what judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vidalign.cost import Cost, StepSizes
from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.evaluation.metrics.base import Metric
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.registry import register
from vidalign.rewards.base import ScoreRequest
from vidalign.students.base import Generate, Student
from vidalign.students.kind import StudentKind
from vidalign.students.spec import StudentSpec

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext

CODE = 16
"""Length of what stands for a prompt."""


@dataclass
class PainterSpec(StudentSpec):
    size: int = 8
    """Pixels of a side."""
    width: int = 32
    """Hidden units."""
    spread: float = 0.1
    """Standard deviation of a pixel around the mean picture."""


class Painter(Student[PainterSpec]):
    """Draws pictures around the mean that a small network finds for a prompt."""

    spec_type = PainterSpec

    def __init__(self, spec: PainterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.Sequential(nn.Linear(CODE, spec.width), nn.Tanh(), nn.Linear(spec.width, 3 * spec.size**2))

    @classmethod
    def from_spec(cls, spec: PainterSpec, seed: int = 0) -> Painter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(spec)

    def forward(self, codes: Tensor) -> Tensor:
        """Mean pictures ``[B, 1, 3, H, W]`` of codes ``[B, CODE]``."""
        pictures: Tensor = torch.sigmoid(self.layers(codes.to(next(self.parameters()).dtype)))
        return pictures.view(-1, 1, 3, self.spec.size, self.spec.size)

    def read(self, prompts: Sequence[str]) -> Tensor:
        """Codes ``[B, CODE]`` of prompts: random ones, the same for the same text."""
        return torch.stack([torch.randn(CODE, generator=generator(0, text, 0)) for text in prompts]).to(self.device)

    def draw(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> Tensor:
        """Pictures ``[B, 1, 3, H, W]``, the noise of each from its generator."""
        mean: Tensor = self(self.read(prompts))
        noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
        return mean + self.spec.spread * noise.to(mean)

    def sampler(self, frames: int, method: str = "causal", **parts: Any) -> Generate:
        return lambda prompts, generators: self.draw(prompts, generators).clamp(0, 1)


@register("students", "painter")
class PainterKind(StudentKind[PainterSpec, Painter]):
    """Pictures are clips of one frame."""

    spec_type = PainterSpec

    @classmethod
    def network(cls) -> type[Painter]:
        return Painter

    @classmethod
    def check_frames(cls, spec: PainterSpec, frames: int, where: str) -> None:
        if frames != 1:
            raise UserError(f"a picture has one frame, not {frames}", where=where, fix="use 1")


Tensors = Literal["picture", "advantage"]


@register("objectives", "reinforce")
class Reinforce(Objective):
    """Policy gradient: raise the density of pictures that score above the mean of their prompt."""

    name = "reinforce"
    needs = Needs(students=("painter",), rewards=True, min_group=2)

    @dataclass
    class Config:
        group_size: int = 8
        """Pictures per prompt."""

    config: Config

    def collect(self, ctx: TrainContext[Painter, None], batch: Batch) -> Experience[Tensors]:
        size = self.config.group_size
        group = torch.arange(len(batch.prompts)).repeat_interleave(size)
        samples = [number * size + g for number in batch.ids for g in range(size)]
        pictures = ctx.student.draw([batch.prompts[n] for n in group], ctx.generators("rollout", samples))
        request = ScoreRequest(pictures.clamp(0, 1), batch.prompts, group)
        return Experience({"picture": pictures}, group, None, batch.prompts, request=request)

    def digest(self, ctx: TrainContext[Painter, None], experience: Experience[Tensors]) -> Experience[Tensors]:
        assert ctx.rewards is not None, "it needs rewards"
        scores = ctx.rewards.total(experience.scores).view(-1, self.config.group_size)
        experience.metrics["reward/total/mean"] = float(scores.mean())
        centred = scores - scores.mean(1, keepdim=True)
        experience.tensors["advantage"] = (centred / (scores.std(1, keepdim=True) + 1e-6)).flatten()
        return experience

    def loss(self, ctx: TrainContext[Painter, None], micro_batch: MicroBatch[Tensors], phase: Phase) -> LossOut:
        data, student = micro_batch.data, ctx.student
        mean = student(student.read([data.prompts[n] for n in data.group_index]))
        density = -((data["picture"] - mean) / student.spec.spread).square().flatten(1).mean(1) / 2
        return LossOut(-(data["advantage"] * density).mean())

    def cost(self, sizes: StepSizes) -> Cost:
        pictures = sizes.prompts * self.config.group_size
        return Cost(forwards=2 * pictures, reward_calls=pictures * sizes.rewards)


def redness(clips: Tensor) -> Tensor:
    """``[B]``: how much redder than green and blue."""
    return clips[:, :, 0].mean((1, 2, 3)) - clips[:, :, 1:].mean((1, 2, 3, 4))


@register("rewards", "redness")
class RednessReward:
    name = "redness"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"redness": redness(clips)}


@register("metrics", "redness")
class RednessMetric(Metric):
    name = "redness"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"value": redness(clips)}
