"""The few-step causal sampler over a branching plan.

Self-Forcing sampler: per chunk, predict x0 (conversion in float64), re-noise to the next sigma with fresh
noise, emit the last x0, then one clean pass at t = 0 writes its keys and values to a new context. The prefix
runs once per prompt and is broadcast to the group without a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vidalign.losses.flow_matching import add_noise
from vidalign.students.video.context import Context
from vidalign.students.video.rollout.noise import Noise
from vidalign.students.video.rollout.plan import ChunkStates, Rollout, RolloutPlan

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.student import VideoStudent


OnChunk = Callable[[int, "Tensor"], None]


def rollout(
    student: VideoStudent,
    text: Tensor,
    plan: RolloutPlan,
    noise: Noise,
    context: Context | None = None,
    on_chunk: OnChunk | None = None,
    rows: int = 0,
) -> Rollout:
    """Generate `plan` for `text` `[B, L, D]`; see `VideoStudent.rollout`.

    rows: most candidates in one call of the network behind the prefix, whole groups or an equal part of one; 0 takes
    all of them. Results do not depend on it.
    """
    chunk_frames, group_size = student.spec.cache.chunk_frames, plan.group_size
    total = len(text) * group_size
    assert noise.initial.shape[:2] == (total, plan.chunks * chunk_frames), "noise must match prompts and plan"
    assert on_chunk is None or not 0 < rows < total, "a stream is generated in one piece"
    branch = slice(plan.prefix * chunk_frames, (plan.prefix + plan.branch) * chunk_frames)
    head = _Run(student, text, context if context is not None else student.begin(text), plan, on_chunk)
    head.generate(range(plan.prefix), noise[::group_size])
    parts = []
    for part in _parts(total, group_size, rows):
        prompts = slice(part.start // group_size, -(-part.stop // group_size))
        if len(text[prompts]) < len(text):
            student.runtime.text = {}  # it holds the keys and values of other texts
        behind = head.context.expand(group_size).rows(part) if rows else head.context.expand(group_size)
        run = _Run(student, text[prompts], behind, plan, on_chunk)
        run.generate(range(plan.prefix, plan.chunks), noise[part])
        parts.append(run)
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
        timings={name: sum(run.timings[name] for run in (head, *parts)) for name in head.timings},
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
        self, student: VideoStudent, text: Tensor, context: Context, plan: RolloutPlan, on_chunk: OnChunk | None
    ) -> None:
        self.student, self.text, self.context, self.plan, self.on_chunk = student, text, context, plan, on_chunk
        self.chunks: list[Tensor] = []
        self.states: dict[int, ChunkStates] = {}
        self.calls = 0
        self.timings = {"denoise": 0.0, "clean": 0.0}

    def generate(self, chunks: range, noise: Noise) -> None:
        """These chunks of the plan, from the noise of all of its frames."""
        student, size = self.student, self.student.spec.cache.chunk_frames
        for chunk in chunks:
            frames = slice(chunk * size, (chunk + 1) * size)
            with _Clock(self.timings, "denoise", noise.initial.device):
                initial, renoise = noise.initial[:, frames], noise.renoise[:, :, frames]
                x0, states = _denoise(student, self.text, self.context, initial, renoise)
            self.chunks.append(x0)
            if chunk in self.plan.record:
                self.states[chunk] = states
            self.calls += len(states.sigmas)
            if chunk < self.plan.chunks - 1 or self.plan.keep_final:
                with _Clock(self.timings, "clean", noise.initial.device):
                    self.context = student.extend(self.context, x0, self.text)
                self.calls += 1
            if self.on_chunk is not None:
                self.on_chunk(chunk, x0)


def _denoise(
    student: VideoStudent, text: Tensor, context: Context, x_t: Tensor, renoise: Tensor
) -> tuple[Tensor, ChunkStates]:
    """One chunk `[n, chunk_frames, C, H, W]` from noise to x0."""
    sigmas = student.spec.sampler.steps(first=context.frames == 0)
    seen, predicted = [], []
    shared = student.reader(context)
    for step, sigma in enumerate(sigmas):
        level = torch.full((len(x_t),), sigma, dtype=torch.float64, device=x_t.device)
        x0 = student.predict_x0(x_t, level, text, shared)
        seen.append(x_t)
        predicted.append(x0)
        if step + 1 < len(sigmas):
            x_t = add_noise(x0, renoise[:, step], sigmas[step + 1])
    return x0, ChunkStates(sigmas, torch.stack(seen, 1), torch.stack(predicted, 1))


class _Clock:
    """Adds wall time to `timings[name]`."""

    def __init__(self, timings: dict[str, float], name: str, device: torch.device) -> None:
        self.timings, self.name, self.device = timings, name, device

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self.start = self._now()

    def __exit__(self, *exc: object) -> None:
        self.timings[self.name] += self._now() - self.start
