"""A bidirectional multi-step model as teacher: the ``velocity`` of a network that shares the student's latents."""

from __future__ import annotations

import torch

from vidalign.deferred import without_gradient
from vidalign.teachers.network import NetworkTeacher


class ModelTeacher(NetworkTeacher):
    """A frozen bidirectional multi-step video network. Offers ``velocity``."""

    offers = ("velocity",)

    @without_gradient
    def velocity(self, x_t: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """``[N, F, C, H, W]`` at noise levels ``[N]`` or ``[N, F]``; every frame sees every frame."""
        return self.model.bidirectional(x_t, sigma, text)
