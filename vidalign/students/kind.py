"""What the rest of the package asks of a kind of student. The registry holds a `StudentKind`; nothing else in the
package depends on which kinds there are.

A kind is light: a recipe is checked by it without the network, whose module it imports in `network`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from vidalign.errors import UsageError, UserError
from vidalign.students.exchange import Card, Leaving
from vidalign.students.samples import SampleRequest, Samples
from vidalign.students.spec import SpecT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vidalign.codecs.base import Codec
    from vidalign.data.source import PromptSource
    from vidalign.engine.config import Precision
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentChoice
    from vidalign.students.base import Student
    from vidalign.students.exchange import Imported, ImportOptions
    from vidalign.students.live import Streamer
    from vidalign.students.video.spec import Sampler
    from vidalign.text.features import PromptFeatures

StudentT = TypeVar("StudentT", bound="Student[Any]")


class Sizes(NamedTuple):
    """What the cost of a step depends on, known from the recipe."""

    chunks: int
    """Chunks of a video; 0 for what is not made of frames."""
    sampler: Sampler
    frame: tuple[int, int, int] | None = None
    """(C, h, w) of a latent frame, where it makes such frames."""


class StudentKind(ABC, Generic[SpecT, StudentT]):
    """A kind of student (registry kind ``students``). A subclass gives `spec_type` and `network`; the rest has a
    default that suits clips without text encoder, codec and chunks."""

    spec_type: ClassVar[type[Any]]
    """Its specification, a dataclass derived from `StudentSpec`; what stands under ``student.init``."""
    makes: ClassVar[Literal["clips", "texts"]] = "clips"
    """What rewards and metrics have to judge; a picture is a clip of one frame."""
    asked: ClassVar[Literal["captions", "examples"]] = "captions"
    """What its prompts are, see `PromptSource.gives`."""
    forms: ClassVar[Mapping[str, str]] = {"single": "one safetensors file with the specification"}
    """Forms that a student is exported in, with what each is."""
    adapter_form: ClassVar[str] = ""
    """The one of them that holds the trained adapter alone; empty where there is none."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Entries of the specification in which all start weights of a benchmark must agree."""

    @classmethod
    @abstractmethod
    def network(cls) -> type[StudentT]:
        """Its class, imported now."""

    saved: ClassVar[str] = "student.safetensors"
    """Where a run keeps the weights of its student, below its folder."""

    @dataclass
    class Config:
        """Its own keys in the recipe's section ``student``: none."""

    # --- making one ---

    @classmethod
    def from_spec(cls, spec: SpecT, seed: int = 0) -> StudentT:
        """See `Student.from_spec`."""
        return cls.network().from_spec(spec, seed)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> StudentT:
        """See `Student.load`."""
        return cls.network().load(path, **options)

    @classmethod
    def build(cls, student: StudentChoice, seed: int) -> StudentT:
        """The student of a recipe: saved weights, or random ones of ``student.init``."""
        if student.init is not None:
            return cls.from_spec(cls.spec_type.from_dict(dict(student.init)), seed)
        return cls.load(student.path)

    @classmethod
    def settle(cls, made: StudentT, student: StudentChoice) -> None:
        """Let a student that was just made compute as the section of a recipe says; by default there is nothing to
        say. `build_student` calls it, and whoever loads the student that a run has trained."""

    @classmethod
    def spec(cls, student: StudentChoice) -> SpecT:
        """What a recipe makes of its student, without the weights. Raises `CheckpointError` as `read_spec` does."""
        if student.init is not None:
            made: SpecT = cls.spec_type.from_dict(dict(student.init))
            return made
        return cls.read_spec(student.path)

    @classmethod
    def features(cls, spec: SpecT) -> PromptFeatures | None:
        """What turns prompts into features; None for a student that reads them itself."""
        return None

    @classmethod
    def codec(cls, spec: SpecT) -> Codec:
        """What decodes its latents; by default there are none."""
        from vidalign.codecs.base import NoCodec

        return NoCodec()

    @classmethod
    def decoder(cls, student: StudentChoice) -> Codec | None:
        """What decodes clips that are scored in training, where that is not the codec; by default it is."""
        return None

    @classmethod
    def stand_in(cls, student: StudentChoice) -> tuple[StudentT, Any, Codec]:
        """A student of which the calls of an objective are counted, its prompt features and its codec. A kind whose
        weights are large gives a small network of the same chunks and sampler; the default is the student itself."""
        made = cls.build(student, 0)
        return made, cls.features(made.spec), cls.codec(made.spec)

    @classmethod
    def fitted(cls, student: StudentT, prompts: PromptSource, held_out: PromptSource, count: int) -> PromptSource:
        """The training prompts as this student can read them, by default as they are; asked once, before training.

        held_out: the source of the evaluation's first `count` prompts. Raises `UserError` for prompts that it cannot
        read.
        """
        return prompts

    @classmethod
    def unloaded(cls, student: StudentChoice) -> tuple[StudentT, Any, Codec]:
        """The student of a recipe at its real size with weights on the meta device, its prompt features and its codec:
        what a step holds in memory is traced on them. Only specifications are read. Raises `UserError` for a kind that
        cannot be made so, by default."""
        raise UserError(
            f"students of the kind {student.name!r} cannot be planned",
            where="student.name",
            why="the kind makes no network without weights (StudentKind.unloaded)",
        )

    # --- weights from elsewhere ---

    @classmethod
    def presets(cls) -> dict[str, str]:
        """Families of public checkpoints that it can import, by name, with what each is; by default none."""
        return {}

    @classmethod
    def import_checkpoint(cls, preset: str, checkpoint: str, out: Path, options: ImportOptions) -> Imported:
        """Make the folder `out` of a public checkpoint by a preset. Raises `UserError` before anything is written."""
        raise UsageError("this kind of student imports no checkpoints", where="PRESET", why="it has no presets")

    @classmethod
    def export(cls, leaving: Leaving, form: str, out: Path, dtype: str) -> Path:
        """Write a saved student to `out` in one of `forms`; dtype: of the tensors, empty = as they are stored. Raises
        `UsageError` for what would not compute what was trained."""
        cls._write_single(leaving, out, dtype)
        return out

    @classmethod
    def tensors(cls, path: str | Path) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of saved weights with its name, as they are stored."""
        yield from cls.load(path).state_dict().items()

    @classmethod
    def card(cls, path: str | Path) -> Card:
        """What a model card says of saved weights."""
        return Card()

    @classmethod
    def _write_single(cls, leaving: Leaving, out: Path, dtype: str) -> None:
        """One file with the specification and what made the student."""
        import torch

        student = cls.load(leaving.path)
        (student.to(getattr(torch, dtype)) if dtype else student).save(out, dict(leaving.made))

    # --- what a recipe or a protocol says ---

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Refuse a recipe that does not fit; nothing is loaded. A subclass that overrides it calls this one too."""
        from vidalign.recipe.typed import build

        student = draft.recipe.student
        if student.init:
            build(cls.spec_type, draft.tree.value["student"].value["init"], "student.init", draft.problems)
        elif student.path:
            cls.check_weights(draft, student.path)

    @classmethod
    def check_weights(cls, draft: Draft, path: str) -> None:
        """Refuse weights that are not there, cannot be read or are of another kind, by the header of the file."""
        from vidalign.students.checks import check_weights

        check_weights(draft, path, "student.path", draft.recipe.student.name)

    @classmethod
    def check_frames(cls, spec: SpecT, frames: int, where: str) -> None:
        """Raise `UserError`, which names the key `where`, for a length in latent frames that it cannot make."""

    @classmethod
    def recognises(cls, path: str, spec: dict[str, Any]) -> bool:
        """Whether weights are of this kind, by the specification in their header. It is empty for a `path` that is no
        file, which may be the name of a model elsewhere."""
        return bool(spec) and spec.keys() == {field.name for field in fields(cls.spec_type)}

    @classmethod
    def read_spec(cls, path: str | Path) -> SpecT:
        """The specification of saved weights, by the header of the file. Raises `CheckpointError`."""
        from vidalign.students.weights import reading_spec, spec_of

        written = spec_of(path)
        with reading_spec(str(path)):
            spec: SpecT = cls.spec_type.from_dict(written)
            return spec

    @classmethod
    def sizes(cls, student: StudentChoice, frames: int) -> Sizes:
        """What a step of `frames` latent frames costs depends on."""
        from vidalign.students.video.spec import Sampler

        return Sizes(frames, Sampler())

    @classmethod
    def levels(cls, path: str | Path) -> list[float]:
        """Noise levels that saved weights are sampled at, which a protocol pins; none where there is no such list."""
        return []

    @classmethod
    def check_same_start(cls, path: str | Path, other: str | Path) -> None:
        """Raise `UserError` unless the weights `other` make the same kind of thing as those of a benchmark."""
        first, second = (cls.read_spec(name) for name in (path, other)) if cls.shared else (None, None)
        for name in cls.shared:
            if getattr(first, name) != getattr(second, name):
                raise UserError(
                    f"{other} has another {name} than the protocol's student",
                    where="objectives",
                    why=f"{getattr(second, name)}, not {getattr(first, name)}",
                    fix="start from weights with the same latents, text features and sampler",
                )

    # --- samples for the user ---

    @classmethod
    def sampled_as(cls, student: StudentChoice, request: SampleRequest) -> SampleRequest:
        """The request with the settings of a run's student where it has none of its own."""
        return request

    @classmethod
    def check_samples(cls, spec: SpecT, request: SampleRequest) -> None:
        """Raise `UserError` for a request that it cannot fulfil; asked before its weights are loaded."""
        why = "the student makes clips of a number of frames for a prompt, and no more"
        request.refuse("seconds", "images", "then", "stats", "attention", "compile", why=why)
        check_clip_name(request.out)
        cls.check_frames(spec, request.frames or request.latents, "--frames")

    @classmethod
    def check_live(cls, spec: SpecT) -> None:
        """Raise `UsageError` for a student that `streamer` cannot stream, by default every one; asked before its
        weights are loaded."""
        why = "students of this kind do not make clips chunk by chunk"
        raise UsageError("this student cannot be streamed", where="STUDENT_OR_RUN", why=why, fix="use vidalign sample")

    @classmethod
    def streamer(cls, student: StudentT, request: SampleRequest, features: PromptFeatures | None = None) -> Streamer:
        """What streams clips of a loaded student that `check_live` lets through, with the settings of a request."""
        raise NotImplementedError

    @classmethod
    def sampling_dtype(cls, precision: Precision) -> torch.dtype | None:
        """In which type `load` gives weights that sample in ``fp32``, ``bf16`` or ``fp64``; by default as they are, and
        `load` is not asked."""
        return None

    @classmethod
    def write_samples(
        cls, student: StudentT, request: SampleRequest, features: PromptFeatures | None = None
    ) -> Samples:
        """Sample every prompt into files; features: those of `features`, which hold the prompts of the request."""
        from vidalign.tracking.clips import write_clip

        clips = student.sample(request.prompts, frames=request.frames or request.latents, seed=request.seed)
        return Samples([write_clip(file, clip) for file, clip in zip(request.files, clips, strict=True)])


def check_clip_name(out: Path) -> None:
    """The file's name says a format that clips are written in."""
    if out.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(
            f"unknown clip format '{out.suffix or out.name}'",
            where="--out",
            why="clips are written as animated GIF or as MP4",
            fix="end the file name in .gif or .mp4",
        )
