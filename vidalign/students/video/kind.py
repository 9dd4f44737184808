"""The kind of student `video`, as the registry knows it: light, so that a recipe is checked without its network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.students.video.spec import VideoStudentSpec

if TYPE_CHECKING:
    from vidalign.codecs.base import Codec
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentConfig
    from vidalign.students.video.stand_in import Features
    from vidalign.students.video.student import VideoStudent


class Video:
    """A causal few-step video student over the Wan transformer of diffusers."""

    spec_type = VideoStudentSpec
    makes = "clips"
    """What rewards have to judge."""

    @staticmethod
    def from_spec(spec: VideoStudentSpec, seed: int = 0) -> VideoStudent:
        """See `VideoStudent.from_spec`."""
        from vidalign.students.video.student import VideoStudent

        return VideoStudent.from_spec(spec, seed)

    @staticmethod
    def load(path: str | Path, **options: Any) -> VideoStudent:
        """See `VideoStudent.load`."""
        from vidalign.students.video.student import VideoStudent

        return VideoStudent.load(path, **options)

    @staticmethod
    def check(draft: Draft) -> None:
        """Refuse a recipe that does not fit the student."""
        from vidalign.students.video.checks import check

        check(draft)

    @staticmethod
    def stand_in(config: StudentConfig) -> tuple[VideoStudent, Features, Codec]:
        """A tiny student of the same chunks and sampler with random weights, its prompt features and codec; only the
        specification of the real one is read."""
        from vidalign.students.video.stand_in import stand_in

        return stand_in(config)
