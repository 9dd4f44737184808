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
        """``[N, F, C, H, W]`` at noise levels ``[N]``; every frame sees every frame."""
        return self.model.bidirectional(x_t, sigma, text)

    @torch.no_grad()
    def sample(self, noise: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Euler integration from noise ``[N, F, C, H, W]`` to clean latents in ``steps`` steps."""
        grid = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        sigmas = warp_sigma(grid, self.shift).tolist()
        x = noise
        for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            level = torch.full((len(x),), now, device=x.device)
            x = x + (after - now) * self.velocity(x, level, text)
        return x
