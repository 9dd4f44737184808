"""What teachers share that are a frozen video network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from vidalign.errors import UserError
from vidalign.recipe.schema import StudentChoice
from vidalign.students.checks import check_teacher_weights
from vidalign.students.video.checks import check_weights, written_spec
from vidalign.students.video.spec import VideoStudentSpec
from vidalign.students.weights import reading_spec
from vidalign.teachers.base import check_same

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudent


class NetworkTeacher:
    """A frozen video network, as ``model``; a subclass says what it offers and which students it fits."""

    offers: ClassVar[tuple[str, ...]]
    shared: ClassVar[tuple[str, ...]] = ("codec", "text", "height", "width")
    """Entries of the specification in which student and teacher must agree."""

    @dataclass
    class Config:
        """Where its weights are."""

        path: str = ""
        """Weights: a safetensors file, a folder of `vidalign import`, a hub id, or a shipped name such as
        `world/teacher`."""

    def __init__(self, model: VideoStudent) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The weights can be read, and are those of a video network."""
        path = draft.settings("teacher", cls.Config).path
        if not path or not check_weights(draft, path, "teacher.path"):
            check_teacher_weights(draft, path, "video")

    @classmethod
    def written(cls, draft: Draft) -> VideoStudentSpec | None:
        """The specification in the weights; None where it cannot be read yet, or not at all, which `check` reports."""
        path = draft.settings("teacher", cls.Config).path
        found = written_spec(StudentChoice("video", path=path)) if path else None
        try:
            with reading_spec(path):
                return None if found is None else VideoStudentSpec.from_dict(found)
        except UserError:
            return None

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: VideoStudentSpec) -> Self:
        """The teacher of a recipe; videos have `frames` latent frames of the student `spec`."""
        from vidalign.students.video import VideoStudent

        return cls(VideoStudent.load(config.path))

    def check_student(self, student: VideoStudent) -> None:
        """Raises `UserError` unless student and teacher agree in `shared`."""
        fix = f"distil from a teacher of the same {', '.join(self.shared)}"
        check_same(self.shared, student.spec, self.model.spec, fix)
