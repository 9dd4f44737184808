"""Astrolabe's rollout (2603.17051): groups of clips behind a shared, frozen history, which may be streamed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.errors import UserError
from vidalign.objectives.base import Experience
from vidalign.objectives.parts.rollouts import candidate_ids, on_policy_gap, own_part
from vidalign.objectives.parts.scoring import Judging
from vidalign.ranges import require
from vidalign.students.video.rollout import Rollout, RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.cost import StepSizes
    from vidalign.students.video import Context, VideoStudent


@dataclass
class ClipConfig:
    """Which part of the video is a candidate."""

    chunks: int = 1
    """Chunks generated anew by every candidate: the window of long tuning; 0 = from the fork to the end of the
    video."""
    score: Literal["clip", "video"] = "clip"
    """What the rewards see: the clip alone, or history and clip together (the frames of the history are then kept)."""

    def __post_init__(self) -> None:
        require(self, "chunks", least=0)


@dataclass
class ClipGroups:
    """Forks at a random chunk, the same on every rank, and rolls `group_size` clips a prompt from there."""

    config: ClipConfig
    group_size: int

    def check(self, chunks: int) -> None:
        """`UserError` where a video of so many chunks cannot hold a clip."""
        if self.config.chunks > chunks:
            raise UserError(
                f"a clip of {self.config.chunks} chunks does not fit into a video of {chunks}",
                where="objective.clip.chunks",
                fix="use fewer chunks, 0 for the rest of the video, or more data.frames",
            )

    def plan(self, ctx: TrainContext[VideoStudent] | StepSizes) -> RolloutPlan:
        """The history once, then every clip."""
        self.check(ctx.chunks)
        forks = ctx.chunks - max(self.config.chunks, 1) + 1
        prefix = int(torch.randint(forks, (), generator=ctx.shared_generator("fork")))
        branch = self.config.chunks or ctx.chunks - prefix
        record = tuple(range(prefix, prefix + branch))
        return RolloutPlan(prefix=prefix, branch=branch, group_size=self.group_size, record=record)

    def groups(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Experience:
        """Clips by ``old``, to be judged: tensors x0 ``[P * G, F, C, H, W]`` and sample ``[P * G]``, and the frozen
        history as context, one row a prompt."""
        text, plan = ctx.text(batch.prompts), self.plan(ctx)
        with ctx.policy("old"), ctx.gathered():
            rollout, judging = self._roll(ctx, plan, text, batch)
        x0, (request, metrics) = rollout.latents[:, rollout.branch], judging.request()
        metrics["health/on_policy_gap/max"] = on_policy_gap(ctx, rollout, text, len(x0) // len(text))
        tensors = {"x0": x0, "sample": candidate_ids(ctx, batch.ids, self.group_size)}
        return Experience(tensors, request.group_index, text, batch.prompts, rollout.context, metrics, request=request)

    def _roll(
        self, ctx: TrainContext[VideoStudent], plan: RolloutPlan, text: torch.Tensor, batch: Batch
    ) -> tuple[Rollout, Judging]:
        """The groups of all prompts. Unless rewards see the history, only its cache is kept, and its latents ``[P, f,
        C, H, W]`` where the codec needs them to decode the clips."""
        context, history, first = None, None, 0
        if self.config.score == "clip":
            context, history = _stream(ctx, text, plan.prefix, ctx.generators("history", batch.ids))
            first = plan.prefix * ctx.chunk_frames
            plan = replace(plan, prefix=0, record=tuple(range(plan.branch)))
        plan, noise = own_part(ctx, plan, ctx.student.draw_noise(plan, ctx.generators("rollout", batch.ids)))
        judging = Judging(ctx, batch.prompts, plan.group_size, history, first_frame=first)
        return ctx.student.rollout(text, plan, noise, context=context, on_part=judging.add), judging


def _stream(
    ctx: TrainContext[VideoStudent], text: torch.Tensor, chunks: int, generators: list[torch.Generator]
) -> tuple[Context, torch.Tensor | None]:
    """The cache behind `chunks` generated chunks of ``[B, L, D]`` texts, one chunk of noise at a time; their latents
    ``[B, f, C, H, W]`` if the codec remembers."""
    context, one = ctx.student.begin(text), RolloutPlan(prefix=0, branch=1, keep_final=True)
    kept: list[torch.Tensor] = []
    for _ in range(chunks):
        noise = ctx.student.draw_noise(one, generators)
        rolled = ctx.student.rollout(text, one, noise, context=context)
        assert rolled.final is not None, "the plan keeps the final context"
        context = rolled.final
        if (ctx.decoder or ctx.codec).remembers:
            kept.append(rolled.latents)
    return context, torch.cat(kept, 1) if kept else None
