"""Sharpness: the mean absolute Laplacian of the luminance, for prompts of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from vidalign.registry import register


@register("rewards", "sharpness")
class Sharpness:
    """Nearness of every frame's sharpness to a goal, in 0..1."""

    name = "sharpness"
    judges = "clips"

    @dataclass
    class Config:
        goal: float = 0.1
        """Mean absolute Laplacian that is worth 1."""
        batch: int = 64
        """Frames in one pass."""

        def __post_init__(self) -> None:
            if self.goal <= 0:
                raise ValueError("goal must be positive")

    def __init__(self, config: Config) -> None:
        self.config = config

    @torch.no_grad()
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` of clips ``[B, F, 3, H, W]`` in [0, 1] under its own name; further names are only logged."""
        grey = clips.mean(2).flatten(0, 1).unsqueeze(1)  # (B F, 1, H, W)
        kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
        parts = [functional.conv2d(part, kernel).abs().mean((1, 2, 3)) for part in grey.split(self.config.batch)]
        found = torch.cat(parts).view(len(clips), -1).mean(1)
        return {"sharpness": (found / self.config.goal).clamp(max=1), "laplacian": found}
