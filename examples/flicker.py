"""Flicker: how steady the mean brightness of a clip is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vidalign.evaluation.metrics.base import Metric
from vidalign.registry import register


@register("metrics", "steady")
class Steady(Metric):
    """1 minus the largest change of a frame's mean brightness, from one frame to one `stride` frames later."""

    name = "steady"
    version = "1"

    @dataclass
    class Config:
        stride: int = 1
        """Frames between the two that are compared."""

        def __post_init__(self) -> None:
            if self.stride < 1:
                raise ValueError("stride must be at least 1")

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` by name of clips ``[B, F, 3, H, W]`` in [0, 1]; NaN = not judged."""
        level = clips.mean((2, 3, 4))
        return {"all": 1 - (level[:, self.config.stride :] - level[:, : -self.config.stride]).abs().amax(1)}
