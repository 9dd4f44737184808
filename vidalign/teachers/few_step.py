"""A frozen few-step causal network as teacher, with the student's flow parameterisation and noise levels.

A step-distilled or aligned student, or the student's own weights with privileged input. (Matching a few-step student
to the posterior mean of a multi-step model would blur it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.students.checks import check_teacher_weights
from vidalign.teachers.base import check_same

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudent, VideoStudentSpec


class FewStepTeacher:
    """A frozen causal few-step video network. Offers ``few_step``: the causal velocity of ``model``."""

    offers = ("few_step",)

    @dataclass
    class Config:
        path: str = ""
        """Weights: a safetensors file or a shipped name such as `world/student`."""

    def __init__(self, model: VideoStudent) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The weights can be read, and are those of a video network."""
        check_teacher_weights(draft, draft.settings("teacher", cls.Config).path, "video")

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: VideoStudentSpec) -> FewStepTeacher:
        from vidalign.students.video import VideoStudent

        return cls(VideoStudent.load(config.path))

    def check_student(self, student: VideoStudent) -> None:
        """Raises `UserError` unless teacher and student share latents, text features, chunks and noise levels."""
        names = ("codec", "text", "height", "width", "sampler.sigmas", "sampler.first_sigmas", "cache.chunk_frames")
        fix = "distil from a few-step teacher of the same transport"
        check_same(names, student.spec, self.model.spec, fix)
