"""The few-step causal sampler over a branching plan.

Chunks are denoised one after the other (`solvers.denoise`), or as a rolling window of chunks (`solvers.roll`). One
clean pass at t = 0 then writes the keys and values of a finished chunk to a new context. The prefix runs once per
prompt and is broadcast to the group without a copy. With a rolling window, prefix and branch are rolled in and out one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vidalign.students.video.context import Context
from vidalign.students.video.rollout.clock import Clock, measured
from vidalign.students.video.rollout.noise import Noise
from vidalign.students.video.rollout.plan import ChunkStates, Rollout, RolloutPlan
from vidalign.students.video.rollout.solvers import denoise, roll

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.student import VideoStudent


OnChunk = Callable[[int, "Tensor"], None]
OnPart = Callable[[slice, "Tensor"], None]


def rollout(
    student: VideoStudent,
    text: Tensor,
    plan: RolloutPlan,
    noise: Noise,
    context: Context | None = None,
    on_chunk: OnChunk | None = None,
    rows: int = 0,
    clock: Clock | None = None,
    on_part: OnPart | None = None,
) -> Rollout:
    """Generate `plan` for `text` `[B, L, D]`; see `VideoStudent.rollout`.

    rows: most candidates in one call of the network behind the prefix, whole groups or an equal part of one; 0 takes
    all of them. Results do not depend on it.
    """
    chunk_frames, group_size = student.spec.cache.chunk_frames, plan.group_size
    total = len(text) * group_size
    context = context if context is not None else student.begin(text)
    less = plan.chunks * chunk_frames - noise.initial.shape[1]  # frames that the first chunk of a video lacks
    assert len(noise.initial) == total, "noise must match prompts and plan"
    assert less == 0 or (0 < less < chunk_frames and context.frames == 0), "noise must match prompts and plan"
    starts = [max(0, chunk * chunk_frames - less) for chunk in range(plan.chunks + 1)]
    assert on_chunk is None or not 0 < rows < total, "a stream is generated in one piece"
    branch = slice(starts[plan.prefix], starts[plan.prefix + plan.branch])
    head = _Run(student, text, context, plan, on_chunk, clock)
    head.generate(range(plan.prefix), starts, noise[::group_size])
    parts = []
    for part in _parts(total, group_size, rows):
        prompts = slice(part.start // group_size, -(-part.stop // group_size))
        if len(text[prompts]) < len(text):
            student.runtime.text = {}  # it holds the keys and values of other texts
        behind = head.context.expand(group_size).rows(part) if rows else head.context.expand(group_size)
        run = _Run(student, text[prompts], behind, plan, on_chunk, clock)
        run.generate(range(plan.prefix, plan.chunks), starts, noise[part])
        if not plan.keep_final:
            run.context = head.context  # its own past would lie there until the last part is done
        parts.append(run)
        if on_part is not None:
            before = [chunk.repeat_interleave(group_size, 0)[part] for chunk in head.chunks]
            on_part(part, torch.cat([*before, *run.chunks], 1))
    past = [chunk.repeat_interleave(group_size, 0) for chunk in head.chunks]
    own = [torch.cat(same) for same in zip(*(run.chunks for run in parts), strict=True)]
    states = {chunk: ChunkStates.cat([run.states[chunk] for run in parts]) for chunk in parts[0].states}
    return Rollout(
        torch.cat([*past, *own], 1),
        head.context,
        branch,
        head.states | states,
        chunk_forwards=head.calls + parts[0].calls * group_size,
        final=Context.cat([run.context for run in parts]) if plan.keep_final else None,
    )


def _parts(total: int, group_size: int, rows: int) -> list[slice]:
    """The candidates in parts of at most `rows`, whole groups or equal parts of one."""
    step = total
    if 0 < rows < total:
        equal = max(k for k in range(1, rows + 1) if group_size % k == 0)
        step = rows // group_size * group_size or equal
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


class _Run:
    """Chunks generated one after the other for the same rows."""

    def __init__(
        self,
        student: VideoStudent,
        text: Tensor,
        context: Context,
        plan: RolloutPlan,
        on_chunk: OnChunk | None,
        clock: Clock | None,
    ) -> None:
        self.student, self.text, self.context, self.plan = student, text, context, plan
        self.on_chunk, self.clock = on_chunk, clock
        self.chunks: list[Tensor] = []
        self.states: dict[int, ChunkStates] = {}
        self.calls = 0

    def generate(self, chunks: range, starts: list[int], noise: Noise) -> None:
        """These chunks of the plan, which begin at the frames `starts` of the noise."""
        draws = [noise.frames(starts[chunk], starts[chunk + 1]) for chunk in chunks]
        if draws and self.student.spec.sampler.rolling:
            for index, states in roll(self.student, self.text, lambda: self.context, draws, self.clock):
                self._finished(chunks[index], states)
            return
        for chunk, own in zip(chunks, draws, strict=True):
            with measured(self.clock, "denoise"):
                states = denoise(self.student, self.text, self.context, own)
            self._finished(chunk, states)

    def _finished(self, chunk: int, states: ChunkStates) -> None:
        x0 = states.x0[:, -1]
        self.chunks.append(x0)
        if chunk in self.plan.record:
            self.states[chunk] = states
        self.calls += len(states.sigmas)
        if self.on_chunk is not None:
            self.on_chunk(chunk, x0)
        if chunk < self.plan.chunks - 1 or self.plan.keep_final:
            with measured(self.clock, "clean"):
                self.context = self.student.extend(self.context, x0, self.text)
            self.calls += 1
