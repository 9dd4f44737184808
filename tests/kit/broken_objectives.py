"""Objectives that break one promise each, at the top of a module as those of a plugin author are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vidalign.context import Batch, TrainContext
from vidalign.cost import Cost, StepSizes, cannot_count
from vidalign.losses.flow_matching import add_noise, flow_matching_loss
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase


class Sound(Objective):
    """Flow matching on clips of a teacher at one noise level; keeps every promise."""

    name = "sound"
    needs = Needs(teacher="clips")

    @dataclass
    class Config:
        level: float = 0.5
        """Noise level, in 0..1."""

        def __post_init__(self) -> None:
            if not 0 < self.level < 1:
                raise ValueError("level must lie in 0..1")

    config: Config

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        clips = ctx.teacher.clips(batch.prompts, ctx.generators("clips", batch.ids))
        x0, group = ctx.encode(clips), torch.arange(len(batch.prompts))
        tensors = {"x0": x0, "noise": self.noise(ctx, batch, x0)}
        return Experience(tensors, group, ctx.text(batch.prompts), batch.prompts)

    def noise(self, ctx: TrainContext, batch: Batch, x0: torch.Tensor) -> torch.Tensor:
        return ctx.normal(x0.shape[1:], ctx.generators("noise", batch.ids))

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        x0, noise = data["x0"], data["noise"]
        sigma = x0.new_full((len(x0),), self.config.level)
        x_t = add_noise(x0, noise, sigma)
        velocity = ctx.student.velocity(x_t, sigma, data.text, None, clean=x0)
        return LossOut(flow_matching_loss(velocity, x0, noise, sigma, sigma_floor=0.0).mean())

    def cost(self, sizes: StepSizes) -> Cost:
        return Cost(forwards=sizes.prompts * sizes.teacher_forcing(sizes.chunks), teacher_calls=sizes.prompts)


class Undocumented(Sound):
    """A setting without a docstring."""

    name = "undocumented"

    @dataclass
    class Config:
        level: float = 0.5


class OutOfRange(Sound):
    """A default that its own range refuses."""

    name = "out_of_range"

    @dataclass
    class Config(Sound.Config):
        level: float = 1.5
        """Noise level, in 0..1."""


class GlobalNoise(Sound):
    """Draws from torch's global generator."""

    name = "global_noise"

    def noise(self, ctx: TrainContext, batch: Batch, x0: torch.Tensor) -> torch.Tensor:
        return torch.randn_like(x0)


class SumLoss(Sound):
    """A sum over the samples where a mean is asked."""

    name = "sum_loss"

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        out = super().loss(ctx, micro_batch, phase)
        return LossOut(out.loss * len(micro_batch.data))


class PartialLog(Sound):
    """Logs the size of a micro-batch, which is no property of the step."""

    name = "partial_log"

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        out = super().loss(ctx, micro_batch, phase)
        return LossOut(out.loss, {"objective/samples/mean": torch.tensor(float(len(micro_batch.data)))})


class NoGradient(Sound):
    """A loss that no weight takes part in."""

    name = "no_gradient"

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        return LossOut(super().loss(ctx, micro_batch, phase).loss * 0)


class OwnBatchOnly(Sound):
    """Normalises by the clips of its own process."""

    name = "own_batch_only"

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        experience = super().collect(ctx, batch)
        experience.tensors["noise"] -= experience["noise"].mean(0)
        return experience


class Alone(Sound):
    """Works in a run of one process only."""

    name = "alone"

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        if ctx.world_size > 1 and batch.ids[0] % 2:
            raise RuntimeError("one is enough")
        return super().collect(ctx, batch)


class Forgetful(Sound):
    """Weighs the loss by a counter that does not survive a restart."""

    name = "forgetful"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.steps = 0

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        return LossOut(super().loss(ctx, micro_batch, phase).loss / (1 + self.steps))

    def after_step(self, ctx: TrainContext) -> None:
        self.steps += 1


class Remembering(Forgetful):
    """The same counter, saved."""

    name = "remembering"

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class Cheap(Sound):
    """Says half of what it costs."""

    name = "cheap"

    def cost(self, sizes: StepSizes) -> Cost:
        return Cost(forwards=sizes.prompts * sizes.chunks, teacher_calls=sizes.prompts)


class Silent(Sound):
    """Says nothing of its cost."""

    name = "silent"

    def cost(self, sizes: StepSizes) -> Cost:
        return cannot_count(self)


class Narrow(Sound):
    """Keeps latents in fp32, whatever the precision of the run."""

    name = "narrow"

    def noise(self, ctx: TrainContext, batch: Batch, x0: torch.Tensor) -> torch.Tensor:
        return super().noise(ctx, batch, x0).float()


class Mixing(Sound):
    """Makes a tensor of a type of its own inside the loss."""

    name = "mixing"

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        data.tensors["noise"] = add_noise(data["noise"], torch.zeros(data["noise"].shape), torch.zeros(len(data)))
        return super().loss(ctx, micro_batch, phase)
