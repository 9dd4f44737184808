"""From noise to clean chunks: one chunk at a time, or a rolling window of chunks.

renoise (Self-Forcing, arXiv 2506.08009): predict x0 (conversion in float64), noise it anew to the next level with fresh
noise, emit the last x0. unipc (LongLive 2, arXiv 2605.18739): the multistep solver of diffusers, without fresh noise.
Rolling (Rolling-Forcing, arXiv 2509.25161): as many chunks as there are levels go through the network together, each
one level behind the chunk before it, so that every pass finishes a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vidalign.losses.flow_matching import add_noise
from vidalign.students.video.context import Context
from vidalign.students.video.rollout.clock import Clock, measured
from vidalign.students.video.rollout.noise import Noise
from vidalign.students.video.rollout.plan import ChunkStates

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.student import VideoStudent

BELOW_1 = 1 - 1e-6
"""The first level of the multistep solver is at most this."""


def denoise(student: VideoStudent, text: Tensor, context: Context, noise: Noise) -> ChunkStates:
    """One chunk behind `context`; the last of the predictions is the clean chunk ``[n, frames, C, H, W]``."""
    sampler = student.spec.sampler
    if sampler.solver == "unipc":
        return _unipc(student, text, context, noise.initial)
    sigmas = sampler.steps(first=context.frames == 0)
    x_t, shared = noise.initial, student.reader(context)
    seen, predicted = [], []
    for step, sigma in enumerate(sigmas):
        x0 = student.predict_x0(x_t, _level(x_t, sigma), text, shared)
        seen.append(x_t)
        predicted.append(x0)
        if step + 1 < len(sigmas):
            x_t = add_noise(x0, noise.renoise[:, step], sigmas[step + 1])
    return ChunkStates(sigmas, torch.stack(seen, 1), torch.stack(predicted, 1))


def _unipc(student: VideoStudent, text: Tensor, context: Context, x_t: Tensor) -> ChunkStates:
    """The multistep solver; the network is fed the scheduler's timesteps, which are whole numbers."""
    from diffusers import UniPCMultistepScheduler

    sigmas = student.spec.sampler.steps(first=context.frames == 0)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    scheduler.set_timesteps(sigmas=np.array(sigmas), device=x_t.device)
    scheduler.set_begin_index(0)  # else it looks for every step among its timesteps, on the device
    shared, seen, predicted = student.reader(context), [], []
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=True):
        velocity = student(x_t, _level(x_t, int(1000 * min(sigma, BELOW_1)) / 1000), text, shared)
        seen.append(x_t)
        predicted.append((x_t.double() - sigma * velocity.double()).to(x_t.dtype))
        x_t = scheduler.step(velocity, timestep, x_t, return_dict=False)[0]  # of the last level: the prediction itself
    return ChunkStates(sigmas, torch.stack(seen, 1), torch.stack(predicted, 1))


def roll(
    student: VideoStudent,
    text: Tensor,
    context: Callable[[], Context],
    draws: Sequence[Noise],
    clock: Clock | None,
) -> Iterator[tuple[int, ChunkStates]]:
    """Chunks with these draws, as a window that rolls over them: number and states of each chunk that is finished.

    context: gives the clean past before the first chunk that is not finished. A window attends that past and, in full,
    itself. It holds fewer chunks than levels at both ends of the video.
    """
    sigmas = student.spec.sampler.sigmas
    x_t = [draw.initial for draw in draws]
    seen: list[list[Tensor]] = [[] for _ in draws]
    predicted: list[list[Tensor]] = [[] for _ in draws]
    for turn in range(len(draws) + len(sigmas) - 1):
        window = range(max(0, turn - len(sigmas) + 1), min(len(draws), turn + 1))
        sizes = [x_t[n].shape[1] for n in window]
        levels = [sigmas[turn - n] for n, size in zip(window, sizes, strict=True) for _ in range(size)]
        with measured(clock, "denoise"):
            x = torch.cat([x_t[n] for n in window], 1)
            level = torch.tensor(levels, dtype=torch.float64, device=x.device).expand(x.shape[:2])
            x0 = student.predict_x0(x, level, text, context())
        for n, clean in zip(window, x0.split(sizes, 1), strict=True):
            step = turn - n
            seen[n].append(x_t[n])
            predicted[n].append(clean)
            if step + 1 < len(sigmas):
                x_t[n] = add_noise(clean, draws[n].renoise[:, step], sigmas[step + 1])
        if len(seen[window[0]]) == len(sigmas):
            first = window[0]
            yield first, ChunkStates(sigmas, torch.stack(seen[first], 1), torch.stack(predicted[first], 1))
            seen[first], predicted[first] = [], []


def _level(x_t: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x_t),), sigma, dtype=torch.float64, device=x_t.device)
