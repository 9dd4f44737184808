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
from vidalign.students.video.rollout.noise import Noise
from vidalign.students.video.rollout.plan import ChunkStates, Rollout, RolloutPlan

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.context import Context
    from vidalign.students.video.student import VideoStudent


def rollout(
    student: VideoStudent,
    text: Tensor,
    plan: RolloutPlan,
    noise: Noise,
    context: Context | None = None,
    on_chunk: Callable[[int, Tensor], None] | None = None,
) -> Rollout:
    """Generate `plan` for `text` `[B, L, D]`; see `VideoStudent.rollout`."""
    chunk_frames, group_size = student.spec.cache.chunk_frames, plan.group_size
    assert noise.initial.shape[:2] == (len(text) * group_size, plan.chunks * chunk_frames), (
        "noise must match prompts and plan"
    )
    context = context if context is not None else student.begin(text)
    branch = slice(plan.prefix * chunk_frames, (plan.prefix + plan.branch) * chunk_frames)
    out = Rollout(torch.empty(0), context, branch, timings={"denoise": 0.0, "clean": 0.0})
    chunks: list[Tensor] = []
    for chunk in range(plan.chunks):
        if chunk == plan.prefix:
            out.context, context = context, context.expand(group_size)
            chunks = [c.repeat_interleave(group_size, 0) for c in chunks]
        rows = slice(None, None, group_size) if chunk < plan.prefix else slice(None)
        frames = slice(chunk * chunk_frames, (chunk + 1) * chunk_frames)
        with _Clock(out.timings, "denoise", noise.initial.device):
            x0, states = _denoise(student, text, context, noise.initial[rows, frames], noise.renoise[rows, :, frames])
        chunks.append(x0)
        if chunk in plan.record:
            out.states[chunk] = states
        calls = len(states.sigmas)
        if chunk < plan.chunks - 1 or plan.keep_final:
            with _Clock(out.timings, "clean", noise.initial.device):
                context = student.extend(context, x0, text)
            calls += 1
        out.chunk_forwards += calls * (len(x0) // len(text))
        if on_chunk is not None:
            on_chunk(chunk, x0)
    out.latents = torch.cat(chunks, 1)
    out.final = context if plan.keep_final else None
    return out


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
