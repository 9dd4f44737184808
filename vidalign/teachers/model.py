"""A bidirectional multi-step model as teacher: the ``velocity`` of a network that shares the student's latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidalign.deferred import without_gradient
from vidalign.students.checks import check_teacher_weights
from vidalign.teachers.base import check_same

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudent, VideoStudentSpec


class ModelTeacher:
    """A frozen bidirectional multi-step video network. Offers ``velocity``."""

    offers = ("velocity",)

    @dataclass
    class Config:
        path: str = ""
        """Weights: a safetensors file or a shipped name such as `world/teacher`."""

    def __init__(self, model: VideoStudent) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The weights can be read, and are those of a video network."""
        check_teacher_weights(draft, draft.settings("teacher", cls.Config).path, "video")

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: VideoStudentSpec) -> ModelTeacher:
        from vidalign.students.video import VideoStudent

        return cls(VideoStudent.load(config.path))

    def check_student(self, student: VideoStudent) -> None:
        """Raises `UserError` unless student and teacher share latents and text features: a score of other latents means
        nothing."""
        fix = "distil from a teacher of the same latents and text features"
        check_same(("codec", "text", "height", "width"), student.spec, self.model.spec, fix)

    @without_gradient
    def velocity(self, x_t: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """``[N, F, C, H, W]`` at noise levels ``[N]`` or ``[N, F]``; every frame sees every frame."""
        return self.model.bidirectional(x_t, sigma, text)
