"""What teachers offer: the types that objectives and rewards write into ``TrainContext[Student, Teacher]``.

A teacher need not derive from these: whatever has the methods is one (`docs/adding_a_teacher.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vidalign.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vidalign.data.source import PromptSource
    from vidalign.students.chat import TokenBatch
    from vidalign.students.language import LanguageStudent
    from vidalign.students.video import VideoStudent
    from vidalign.teachers.placement import Placement
    from vidalign.text.features import PromptFeatures


class ClipTeacher(Protocol):
    """Offers ``clips``: finished ones and nothing else."""

    def clips(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """One clip a prompt, drawn by its generator: ``[B, F, 3, H, W]`` in [0, 1]."""
        ...


class VelocityTeacher(Protocol):
    """Offers ``velocity``, of a bidirectional network that shares the student's latents."""

    def velocity(self, x_t: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Like x_t ``[N, F, C, H, W]``, at noise levels ``[N]`` or ``[N, F]`` and text ``[N, L, D]``."""
        ...


class CausalTeacher(Protocol):
    """Offers ``few_step``: a causal network on the student's own noise levels."""

    model: VideoStudent


class LogitTeacher(Protocol):
    """Offers ``logits``, of a language model over the student's own vocabulary."""

    model: LanguageStudent


@runtime_checkable
class ChoosyTeacher(Protocol):
    """Fits some students only."""

    def check_student(self, student: Any) -> None:
        """Raise `UserError` for a student that it cannot teach; called once, before training."""
        ...


@runtime_checkable
class ReadingTeacher(Protocol):
    """Reads the prompts of a run in a way of its own."""

    def fitted(self, prompts: PromptSource) -> PromptSource:
        """The training prompts that it can read. Raises `DataError` for one that it cannot; called once, before
        training."""
        ...


@runtime_checkable
class ReportingTeacher(Protocol):
    """A language model of which only the likeliest tokens are known."""

    def top_logprobs(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and log-probabilities ``[M, K]`` at the response tokens of a batch, row after row."""
        ...


@runtime_checkable
class PlacedTeacher(Protocol):
    """A language model that may lie on another device than the student, or in host memory."""

    model: LanguageStudent
    placement: Placement


@runtime_checkable
class PreparedTeacher(Protocol):
    """Makes something for the prompts of a run while the student is not in memory yet. Its class may have a class
    method ``texts(config)`` too: the prompts that it reads beside those of the run, which are encoded with them."""

    def prepare(self, prompts: Sequence[Any], features: PromptFeatures | None) -> None:
        """Called once, by every process; prompts: the training prompts, each once; features: those of the run."""
        ...


def network_of(teacher: Any) -> nn.Module | None:
    """The network of its own that a teacher has as ``model``, if any. It is moved to the device and computes in the
    engine's precision."""
    model: nn.Module | None = getattr(teacher, "model", None)
    return model


def check_same(names: Sequence[str], student: Any, teacher: Any, fix: str) -> None:
    """Raise `UserError` for the first of these attributes in which two specifications differ; names may be dotted."""
    for name in names:
        expected, actual = (attrgetter(name)(spec) for spec in (student, teacher))
        if expected != actual:
            raise UserError(
                f"student and teacher differ in their {name}",
                where="teacher.path",
                why=f"the student has {expected}, the teacher {actual}",
                fix=fix,
            )
