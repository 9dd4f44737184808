"""A bidirectional multi-step model as teacher: the ``velocity`` of a network that shares the student's latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vidalign.losses.flow_matching import warp_sigma
from vidalign.students.video import VideoStudent, VideoStudentSpec

if TYPE_CHECKING:
    from vidalign.recipe.schema import TeacherConfig


class ModelTeacher:
    """A frozen bidirectional network with a sampler of its own. Offers ``velocity``."""

    offers = ("velocity",)

    def __init__(self, model: VideoStudent, frames: int, *, steps: int = 24, shift: float = 2.0) -> None:
        self.model, self.frames, self.steps, self.shift = model.eval().requires_grad_(False), frames, steps, shift

    @classmethod
    def from_recipe(cls, config: TeacherConfig, frames: int, spec: VideoStudentSpec) -> ModelTeacher:
        return cls(VideoStudent.load(config.path), frames, steps=config.steps, shift=config.shift)

    @torch.no_grad()
    def velocity(self, x_t: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """``[N, F, C, H, W]`` at noise levels ``[N]`` or ``[N, F]``; every frame sees every frame."""
        return self.model.bidirectional(x_t, sigma, text)

    @torch.no_grad()
    def sample(self, noise: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Clean latents from noise ``[N, F, C, H, W]``, chunk by chunk in ``steps`` Euler steps each.

        The chunks that are not done yet are denoised together behind the ones that are, which stay clean.
        """
        grid = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        sigmas = warp_sigma(grid, self.shift).tolist()
        chunk, x = self.model.spec.cache.chunk_frames, noise.clone()
        for start in range(0, x.shape[1], chunk):
            x[:, start:] = noise[:, start:]
            for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
                level = torch.full(x.shape[:2], now, device=x.device)
                level[:, :start] = 0.0
                velocity = self.velocity(x, level, text)
                x[:, start:] += (after - now) * velocity[:, start:]
        return x
