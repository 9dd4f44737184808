"""What teachers share that are a frozen video network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vidalign.errors import UserError
from vidalign.recipe.schema import StudentChoice
from vidalign.students.checks import check_teacher_weights
from vidalign.students.video.changes import changed
from vidalign.students.video.checks import check_weights, written_spec
from vidalign.students.video.kind import Video
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
        """The weights can be read, and are those of a video network that fits the student as `check_student` says."""
        path = draft.settings("teacher", cls.Config).path
        if not path or not check_weights(draft, path, "teacher.path"):
            check_teacher_weights(draft, path, "video")
        teacher = teacher_spec(path)
        student = _spec(draft.recipe.student)
        if student is None or teacher is None:
            return
        try:
            cls._check_shared(student, teacher)
        except UserError as error:
            draft.refuse(error.problems[0].what, "teacher.path", error.problems[0].why, error.problems[0].fix)

    @classmethod
    def _check_shared(cls, student: VideoStudentSpec, teacher: VideoStudentSpec) -> None:
        check_same(cls.shared, student, teacher, f"distil from a teacher of the same {', '.join(cls.shared)}")

    @classmethod
    def from_recipe(cls, config: Any, frames: int, spec: VideoStudentSpec) -> Self:
        """The teacher of a recipe; videos have `frames` latent frames of the student `spec`."""
        from vidalign.students.video import VideoStudent

        teacher = cls(VideoStudent.load(config.path))
        teacher.configure(config)
        return teacher

    def configure(self, config: Any) -> None:
        """Take the settings of its own `Config` that do not choose weights; there are none here."""

    def check_student(self, student: VideoStudent) -> None:
        """Raises `UserError` unless student and teacher agree in `shared`."""
        self._check_shared(student.spec, self.model.spec)


def teacher_spec(path: str) -> VideoStudentSpec | None:
    """The specification of a teacher's weights, see `_spec`."""
    return _spec(StudentChoice("video", Video.Config(), path)) if path else None


def _spec(choice: StudentChoice) -> VideoStudentSpec | None:
    """The specification of a video network; None where it cannot be read without its weights, or is wrong, which other
    checks report."""
    if not isinstance(choice.config, Video.Config) or (found := written_spec(choice)) is None:
        return None
    try:
        with reading_spec(choice.path):
            return changed(VideoStudentSpec.from_dict(found), choice.config)
    except UserError:
        return None
