"""Rewards and metrics that break one promise each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidalign.evaluation.metrics.base import Metric


class Bright:
    """Mean brightness; keeps every promise."""

    name: ClassVar[str] = "bright"
    judges: ClassVar[str] = "clips"

    @dataclass
    class Config:
        goal: float = 1.0
        """Brightness that is worth 1."""

        def __post_init__(self) -> None:
            if self.goal <= 0:
                raise ValueError("goal must be positive")

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        return {self.name: self.values(clips) / self.config.goal}

    def values(self, clips: Tensor) -> Any:
        return clips.flatten(1).mean(1)


class BareSetting(Bright):
    name = "bare_setting"

    @dataclass
    class Config:
        goal: float = 1.0


class BadDefault(Bright):
    name = "bad_default"

    @dataclass
    class Config(Bright.Config):
        goal: float = -1.0
        """Brightness that is worth 1."""


class Whitened(Bright):
    """Depends on the batch."""

    name = "whitened"

    def values(self, clips: Tensor) -> Any:
        values = super().values(clips)
        return values - values.nanmean()


class Placed(Bright):
    """Depends on the place in the batch."""

    name = "placed"

    def values(self, clips: Tensor) -> Any:
        return super().values(clips) + torch.arange(len(clips))


class Zeroed(Bright):
    """Gives a failed item 0."""

    name = "zeroed"

    def values(self, clips: Tensor) -> Any:
        return super().values(clips).nan_to_num(0)


class Poisoned(Bright):
    """Lets a failing item spoil the others."""

    name = "poisoned"

    def values(self, clips: Tensor) -> Any:
        return super().values(clips) + 0 * clips.sum()


class Dropping(Bright):
    """Leaves failed items out, so that the others move up."""

    name = "dropping"

    def values(self, clips: Tensor) -> Any:
        values = super().values(clips)
        return values[values.isfinite()]


class Noisy(Bright):
    name = "noisy"

    def values(self, clips: Tensor) -> Any:
        return super().values(clips) + torch.rand(len(clips))


class Counting(Bright):
    """Remembers how often it was asked."""

    name = "counting"
    asked = 0

    def values(self, clips: Tensor) -> Any:
        self.asked += 1
        return super().values(clips) * self.asked


class Spoiling(Bright):
    """Changes the clips in place."""

    name = "spoiling"

    def values(self, clips: Tensor) -> Any:
        return super().values(clips.mul_(0.5))


class Misnamed(Bright):
    name = "misnamed"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        return {"brightness": self.values(clips)}


class PerFrame(Bright):
    name = "per_frame"

    def values(self, clips: Tensor) -> Any:
        return clips.mean((2, 3, 4))


class Worded(Bright):
    name = "worded"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        return {self.name: ["high"] * len(clips)}


class Coarse(Bright):
    """Another score in fp64."""

    name = "coarse"

    def values(self, clips: Tensor) -> Any:
        return super().values(clips) * (2 if clips.dtype == torch.float64 else 1)


class Picky(Bright):
    """Cannot score the prompts that it is tried on."""

    name = "picky"

    @staticmethod
    def can_score(prompt: str) -> bool:
        return "falls" not in prompt


class Steady(Metric):
    """1 minus the mean change from frame to frame; keeps every promise."""

    name = "steady"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"all": 1 - (clips[:, 1:] - clips[:, :-1]).abs().flatten(1).mean(1)}


class Ranked(Steady):
    """The place among the others."""

    name = "ranked"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"all": super().score(clips, prompts)["all"].argsort().argsort().float()}


class Versionless(Steady):
    name = "versionless"
    version = ""


class Series(Steady):
    name = "series"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"all": clips.mean((2, 3, 4))}


class Mute(Steady):
    name = "mute"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"all": torch.full((len(clips),), torch.nan)}


class Short(Steady):
    name = "short"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"all": super().score(clips, prompts)["all"][:-1]}
