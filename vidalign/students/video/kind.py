"""The kind of student `video`, as it is registered: light, so that a recipe is checked without its network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.students.kind import Sizes, StudentKind
from vidalign.students.video.spec import VideoStudentSpec

if TYPE_CHECKING:
    from vidalign.codecs.base import Codec
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentChoice
    from vidalign.students.video.stand_in import Features
    from vidalign.students.video.student import VideoStudent
    from vidalign.text.features import PromptFeatures


class Video(StudentKind[VideoStudentSpec, "VideoStudent"]):
    """A causal few-step video student over the Wan transformer of diffusers."""

    spec_type = VideoStudentSpec
    shared = ("codec", "height", "width", "text", "sampler")

    @dataclass
    class Config:
        """Settings of a video student."""

        cache: dict[str, Any] | None = None
        """Changes to its cache policy (`window`, `sink`, `rope`, `sink_decay`): a rolling cache makes long videos."""

    @classmethod
    def network(cls) -> type[VideoStudent]:
        from vidalign.students.video.student import VideoStudent

        return VideoStudent

    @classmethod
    def build(cls, student: StudentChoice, seed: int) -> VideoStudent:
        made = super().build(student, seed)
        made.spec.cache = replace(made.spec.cache, **student.config.cache or {})
        return made

    @classmethod
    def features(cls, spec: VideoStudentSpec) -> PromptFeatures:
        from vidalign.text.pretrained import build_features

        return build_features(spec.text)

    @classmethod
    def codec(cls, spec: VideoStudentSpec) -> Codec:
        from vidalign.codecs import build_codec

        return build_codec(spec.codec)

    @classmethod
    def check(cls, draft: Draft) -> None:
        from vidalign.students.video.checks import check

        super().check(draft)
        check(draft)

    @classmethod
    def check_frames(cls, spec: VideoStudentSpec, frames: int, where: str) -> None:
        spec.check_frames(frames, where)

    @classmethod
    def recognises(cls, path: str, spec: dict[str, Any]) -> bool:
        return "transformer" in spec

    @classmethod
    def read_spec(cls, path: str | Path) -> VideoStudentSpec:
        from vidalign.students.video.checkpoint import SIZES, check_spec
        from vidalign.students.weights import spec_of

        check_spec(spec_of(path), str(path), "transformer", SIZES)
        return super().read_spec(path)

    @classmethod
    def sizes(cls, student: StudentChoice, frames: int) -> Sizes:
        spec = cls._spec(student)
        return Sizes(frames // spec.cache.chunk_frames, spec.sampler)

    @classmethod
    def _spec(cls, student: StudentChoice) -> VideoStudentSpec:
        """What a recipe makes of its student, without the weights."""
        spec = VideoStudentSpec.from_dict(dict(student.init)) if student.init else cls.read_spec(student.path)
        return replace(spec, cache=replace(spec.cache, **student.config.cache or {}))

    @classmethod
    def levels(cls, path: str | Path) -> list[float]:
        return cls.read_spec(path).sampler.sigmas

    @classmethod
    def stand_in(cls, student: StudentChoice) -> tuple[VideoStudent, Features, Codec]:
        """A tiny student of the same chunks and sampler with random weights, its prompt features and codec. Only the
        specification of the real one is read."""
        from vidalign.students.video.stand_in import stand_in

        return stand_in(cls._spec(student))

    @classmethod
    def unloaded(cls, student: StudentChoice) -> tuple[VideoStudent, Features, Codec]:
        from vidalign.students.video.stand_in import unloaded

        return unloaded(cls._spec(student))
