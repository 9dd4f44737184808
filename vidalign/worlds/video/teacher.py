"""The world's ground truth as a black-box teacher: a caption in, a finished clip out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from vidalign.worlds.video.renderer import clips

if TYPE_CHECKING:
    from vidalign.students.video import VideoStudentSpec


class WorldTeacher:
    """Renders a fresh scene for every prompt. Offers ``clips``."""

    offers = ("clips",)

    @dataclass
    class Config:
        """It takes no settings."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: VideoStudentSpec) -> Self:
        return cls(frames)

    def clips(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """One clip per prompt, ``[B, F, 3, H, W]`` in [0, 1]; raises `DataError` for a prompt that is no caption."""
        return torch.cat([clips([p], self.frames, generator=g) for p, g in zip(prompts, generators, strict=True)])
