"""A frozen few-step causal network as teacher, with the student's flow parameterisation and noise levels.

A step-distilled or aligned student, or the student's own weights with privileged input. (Matching a few-step student
to the posterior mean of a multi-step model would blur it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidalign.errors import UserError
from vidalign.ranges import require
from vidalign.students.video.checks import check_forcing
from vidalign.teachers.network import NetworkTeacher, teacher_spec

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudentSpec


class FewStepTeacher(NetworkTeacher):
    """A frozen causal few-step video network. Offers ``few_step``: the causal velocity of ``model``."""

    offers = ("few_step",)
    shared = (*NetworkTeacher.shared, "sampler.sigmas", "sampler.first_sigmas", "cache.chunk_frames")

    @dataclass
    class Config(NetworkTeacher.Config):
        forcing_frames: int = 0
        """Most latent frames of a video that it takes at once, whole chunks; 0 = all. Results do not depend on it."""

        def __post_init__(self) -> None:
            require(self, "forcing_frames", least=0)

    def configure(self, config: Any) -> None:
        self.model.forcing_frames = config.forcing_frames

    @classmethod
    def check(cls, draft: Draft) -> None:
        super().check(draft)
        config = draft.settings("teacher", cls.Config)
        if (spec := teacher_spec(config.path)) is not None and not spec.bidirectional:
            check_forcing(draft, "teacher.forcing_frames", config.forcing_frames, spec)

    @classmethod
    def _check_shared(cls, student: VideoStudentSpec, teacher: VideoStudentSpec) -> None:
        if teacher.bidirectional:
            raise UserError(
                f"weights of {teacher.preset or 'a bidirectional network'} have no few-step velocity",
                where="teacher.path",
                why="the network is bidirectional: it predicts the mean of all clips, and a few-step student that "
                "matches it is blurred",
                fix="name a causal few-step network, or use objective.name: dmd with teacher.name: model",
            )
        super()._check_shared(student, teacher)
