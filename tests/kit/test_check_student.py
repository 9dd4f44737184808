"""Every kind of student keeps its promises; one that breaks a promise is refused by that very promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign import registry
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.students.video.kind import Video
from vidalign.testing import check_student
from vidalign.testing.recipes import VIDEO

KINDS = [name for name, source in registry.names("students").items() if source == "vidalign"]


@pytest.mark.parametrize("name", KINDS)
def test_a_built_in_kind_keeps_its_promises(name: str) -> None:
    check_student(name)


def kind_of(student: type[VideoStudent]) -> type[Any]:
    """The kind `video` around another network, by its name."""

    class Kind(Video):
        name = student.__name__.lower()

        @classmethod
        def network(cls) -> type[VideoStudent]:
            return student

    return Kind


class Careless(VideoStudent):
    """Weights of no seed."""

    @classmethod
    def from_spec(cls, spec: VideoStudentSpec, seed: int = 0) -> VideoStudent:
        student = super().from_spec(spec, seed)
        with torch.no_grad():
            student.base.proj_out.bias.copy_(torch.tensor(list(Path("/dev/urandom").open("rb").read(192))))
        return student


class Drawing(VideoStudent):
    """Random weights by the global generator."""

    @classmethod
    def from_spec(cls, spec: VideoStudentSpec, seed: int = 0) -> VideoStudent:
        torch.rand(1)
        return super().from_spec(spec, seed)


class Sampled(VideoStudent):
    """Changes what its sampler makes."""

    def sampler(self, frames: int, method: str = "causal", **parts: Any) -> Any:
        make = super().sampler(frames, method, **parts)
        return lambda prompts, generators: self.changed(make(prompts, generators), prompts)

    def changed(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return clips


class Batched(Sampled):
    def changed(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return clips / len(clips)


class Turned(Sampled):
    def changed(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return clips * torch.linspace(0.5, 1, len(clips)).view(-1, 1, 1, 1, 1) if len(clips) > 1 else clips / 2


class Global(Sampled):
    def changed(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return (clips + torch.rand(clips.shape)) / 2


class Seedless(Sampled):
    def changed(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.zeros_like(clips)


class Bright(Sampled):
    def changed(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return clips * 2


class Narrow(Sampled):
    """Answers otherwise in fp64."""

    def changed(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return clips * (0.5 if clips.dtype == torch.float64 else 1.0)


class Lossy(VideoStudent):
    """A file that does not hold what was saved."""

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> VideoStudent:
        student = super().load(*args, **kwargs)
        with torch.no_grad():
            student.base.proj_out.bias += 0.1
        return student


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Careless, "is made with other weights by the same seed: 1 of "),
        (Drawing, "draws from the global generator of torch"),
        (Batched, "makes another output of prompt 0 alone than in a batch: pixels differ by up to "),
        (Turned, "alone than in a batch"),
        (Global, "draws from the global generator of torch"),
        (Seedless, "does not use the generators that it is given"),
        (Bright, "makes clips in ["),
        (Narrow, "in torch.float64 on cpu"),
        (Lossy, "makes another output of prompt 0 after save and load: pixels differ by up to "),
    ],
)
def test_a_broken_student_is_refused(network: type[VideoStudent], words: str) -> None:
    kind = kind_of(network)
    with pytest.raises(AssertionError) as refusal:
        check_student(kind, VIDEO)
    assert str(refusal.value).startswith(f"{kind.name} ") and words in str(refusal.value)


def test_a_kind_of_an_author_passes() -> None:
    kind = kind_of(VideoStudent)
    check_student(kind, VIDEO, prompts=["a large red circle falls", "a small blue square stays still", "a red circle"])
