"""Flow matching on teacher clips: pre-training of teacher and student, and the supervised baseline.

Loss (Lipman et al. 2210.02747; Self-Forcing 2506.08009, section 3, for the causal form):
``x_t = (1 - sigma) x0 + sigma noise``, ``L = |velocity - (noise - x0)|^2``.

- ``attention: bidirectional`` trains a multi-step teacher: one sigma a clip, every frame sees every frame. With
  ``continuation`` the chunks before a random one are clean, so that the teacher can also go on from a beginning.
  (Levels per frame as in Diffusion Forcing 2407.01392, of which this is the case of a clean past.)
- ``attention: causal`` trains a causal student by teacher forcing: one sigma a chunk, each noisy chunk sees the
  clean chunks before it and itself.

What we changed: ``levels: sampler`` draws sigma from the student's own few noise levels, so that a small network spends
its capacity where the sampler goes. ``sigma_floor`` tames the last levels of an x0-predicting network.
Knobs that matter: ``levels``, ``shift``, ``sigma_floor``, ``continuation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.losses.flow_matching import add_noise, flow_matching_loss, warp_sigma
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent
    from vidalign.teachers.base import ClipTeacher

    Context = TrainContext[VideoStudent, ClipTeacher]


class SFT(Objective):
    name = "sft"
    needs = Needs(teacher="clips")

    @dataclass
    class Config:
        attention: Literal["causal", "bidirectional"] = "causal"
        """causal: teacher forcing over chunks; bidirectional: every frame sees every frame."""
        levels: Literal["continuous", "sampler"] = "continuous"
        """Where sigma comes from: uniform numbers, then shifted, or the list of the student's own sampler."""
        shift: float = 2.0
        """Timestep shift of continuous levels; above 1 it favours high noise."""
        sigma_floor: float = 0.1
        """Levels below it count less, as (sigma / floor)^2; 0 is the plain loss."""
        continuation: bool = False
        """Keep the chunks before a random one of each clip clean; needs bidirectional attention and a sigma_floor."""

        def __post_init__(self) -> None:
            require(self, "shift", above=0)
            require(self, "sigma_floor", least=0)
            if self.continuation and not (self.attention == "bidirectional" and self.sigma_floor > 0):
                raise ValueError("continuation needs attention: bidirectional and sigma_floor above 0")

    config: Config

    def collect(self, ctx: Context, batch: Batch) -> Experience:
        clips = ctx.teacher.clips(batch.prompts, ctx.generators("teacher", batch.ids))
        return Experience(
            tensors={"x0": ctx.encode(clips), "sample": torch.tensor(batch.ids)},
            group_index=torch.arange(len(batch.prompts)),
            text=ctx.text(batch.prompts),
            prompts=batch.prompts,
        )

    def loss(self, ctx: Context, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data = micro_batch.data
        x0 = data["x0"]
        generators = ctx.generators("noise", data["sample"].tolist())
        noise = ctx.normal(x0.shape[1:], generators)
        sigma = self._sigma(ctx, x0, generators)
        x_t = add_noise(x0, noise, sigma)
        if self.config.attention == "bidirectional":
            velocity = ctx.student.bidirectional(x_t, sigma, data.features)
        else:
            velocity = ctx.student.velocity(x_t, sigma, data.features, None, clean=x0)
        loss = flow_matching_loss(velocity, x0, noise, sigma, sigma_floor=self.config.sigma_floor).mean()
        return LossOut(loss, {"objective/flow_matching/mean": loss.detach()})

    def _sigma(self, ctx: Context, x0: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        """The level of every frame ``[N, F]``: one a chunk (causal), or one a clip behind a clean past."""
        causal = self.config.attention == "causal"
        chunk = ctx.chunk_frames
        chunks = x0.shape[1] // chunk
        draws = chunks if causal else 1
        uniform = ctx.uniform((draws,), generators)
        if self.config.levels == "sampler":
            sampler = ctx.student.spec.sampler
            sigma = _pick(sampler.sigmas, uniform).expand(-1, chunks)
            sigma = torch.cat([_pick(sampler.steps(first=True), uniform[:, :1]), sigma[:, 1:]], 1)
        else:
            sigma = warp_sigma(uniform, self.config.shift).clamp(min=1e-3).expand(-1, chunks)
        if self.config.continuation:
            first = torch.stack([torch.randint(chunks, (1,), generator=g) for g in generators])
            sigma = sigma * (torch.arange(chunks) >= first).to(sigma)
        return sigma.repeat_interleave(chunk, 1)


def _pick(levels: list[float], uniform: torch.Tensor) -> torch.Tensor:
    """The levels at these fractions, in [0, 1), of a list."""
    return torch.tensor(levels, device=uniform.device)[(uniform * len(levels)).long()]
