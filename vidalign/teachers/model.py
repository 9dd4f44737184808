"""A bidirectional multi-step model as teacher: the ``velocity`` of a network that shares the student's latents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from vidalign.deferred import without_gradient
from vidalign.losses.flow_matching import add_noise, warp_sigma

if TYPE_CHECKING:
    from vidalign.recipe.schema import TeacherConfig
    from vidalign.students.video import VideoStudent, VideoStudentSpec


class ModelTeacher:
    """A frozen bidirectional network with a sampler of its own. Offers ``velocity``.

    steps, shift: levels of a chunk. eta in 0..1: how much fresh noise enters between two levels, as in DDIM
    (2010.02502): with 0 they are Euler steps, with 1 the predicted x0 is noised anew, as in the student's sampler.
    """

    offers = ("velocity",)

    def __init__(
        self, model: VideoStudent, frames: int, *, steps: int = 24, shift: float = 5.0, eta: float = 0.85
    ) -> None:
        self.model, self.frames = model.eval().requires_grad_(False), frames
        self.steps, self.shift, self.eta = steps, shift, eta

    @classmethod
    def from_recipe(cls, config: TeacherConfig, frames: int, spec: VideoStudentSpec) -> ModelTeacher:
        from vidalign.students.video import VideoStudent

        return cls(VideoStudent.load(config.path), frames)

    @without_gradient
    def velocity(self, x_t: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """``[N, F, C, H, W]`` at noise levels ``[N]`` or ``[N, F]``; every frame sees every frame."""
        return self.model.bidirectional(x_t, sigma, text)

    @without_gradient
    def sample(self, text: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Clean latents ``[N, F, C, H, W]`` of texts ``[N, L, D]``, one CPU generator each, chunk by chunk.

        The chunks that are not done yet go together from noise through ``steps`` levels behind the ones that are, which
        stay clean.
        """
        grid = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        sigmas = warp_sigma(grid, self.shift).tolist()
        chunk, shape = self.model.spec.cache.chunk_frames, self.model.chunk_shape[1:]

        def noise(frames: int) -> torch.Tensor:
            return torch.stack([torch.randn((frames, *shape), generator=g) for g in generators]).to(text.device)

        done = noise(0)
        for start in range(0, self.frames, chunk):
            x = torch.cat([done, noise(self.frames - start)], 1)
            for now, after in pairwise(sigmas):
                level = torch.full(x.shape[:2], now, device=x.device)
                level[:, :start] = 0.0
                velocity, x_t = self.velocity(x, level, text)[:, start:], x[:, start:]
                x0, predicted = x_t - now * velocity, x_t + (1 - now) * velocity
                fresh = (1 - self.eta**2) ** 0.5 * predicted + self.eta * noise(x0.shape[1])
                x = torch.cat([done, add_noise(x0, fresh, after)], 1)
            done = x[:, : start + chunk]
        return done
