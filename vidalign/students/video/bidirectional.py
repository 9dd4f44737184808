"""The many-step sampler of a bidirectional network, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from vidalign.losses.flow_matching import add_noise, warp_sigma

if TYPE_CHECKING:
    from vidalign.students.video.student import VideoStudent

STEPS, SHIFT, ETA = 24, 5.0, 0.85


@torch.no_grad()
def sample_bidirectional(
    model: VideoStudent,
    frames: int,
    text: torch.Tensor,
    generators: Sequence[torch.Generator],
    *,
    steps: int = STEPS,
    shift: float = SHIFT,
    eta: float = ETA,
) -> torch.Tensor:
    """Clean latents ``[N, F, C, H, W]`` of texts ``[N, L, D]``, one CPU generator each.

    The chunks that are not done yet go together from noise through `steps` levels, warped by `shift`. The chunks that
    are done stay clean before them. eta in 0..1: how much fresh noise enters between two levels, as in DDIM
    (2010.02502). With 0 they are Euler steps; with 1 the predicted x0 is noised anew, as in the student's sampler.
    """
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas = warp_sigma(grid, shift).tolist()
    chunk, shape = model.spec.cache.chunk_frames, model.chunk_shape[1:]

    def noise(count: int) -> torch.Tensor:
        return torch.stack([torch.randn((count, *shape), generator=g) for g in generators]).to(text.device)

    done = noise(0)
    for start in range(0, frames, chunk):
        x = torch.cat([done, noise(frames - start)], 1)
        for now, after in pairwise(sigmas):
            level = torch.full(x.shape[:2], now, device=x.device)
            level[:, :start] = 0.0
            velocity, x_t = model.bidirectional(x, level, text)[:, start:], x[:, start:]
            x0, predicted = x_t - now * velocity, x_t + (1 - now) * velocity
            fresh = (1 - eta**2) ** 0.5 * predicted + eta * noise(x0.shape[1])
            x = torch.cat([done, add_noise(x0, fresh, after)], 1)
        done = x[:, : start + chunk]
    return done
