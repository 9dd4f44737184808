"""Rewards that judge frames one by one, and how the scores of frames become that of a clip.

A mean over frames hides clips that begin well and end badly, and the best frames of a clip say nothing of its worst.
So all poolings are logged beside the chosen one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from vidalign.deferred import without_gradient
from vidalign.ranges import require
from vidalign.rewards.pretrained import LOCAL, Checkpoint, Resting, finite

Pooling = Literal["mean", "min", "top_share", "last_quarter"]


@dataclass
class FrameConfig(Checkpoint):
    """Which frames are judged by a pretrained model, and how their scores are pooled."""

    frames: int = 8
    """Frames judged of every clip, evenly spaced from the first to the last; 0 judges all."""
    pooling: Pooling = "mean"
    """Of the scores of frames: their mean, the lowest, the mean of the best `share` (as Astrolabe pools HPSv3), or that
    of the last quarter of the frames, which sees drift."""
    share: float = 0.3
    """Of the frames that top_share takes, the best ones."""
    batch: int = 64
    """Frames in one forward pass."""

    def __post_init__(self) -> None:
        require(self, "frames", least=0)
        require(self, "share", above=0, most=1)
        require(self, "batch", least=1)


class FrameReward:
    """Base of rewards that judge frames: subclasses give `load` and `judge`."""

    name: ClassVar[str]
    judges: ClassVar[str] = "clips"
    local_settings: ClassVar[tuple[str, ...]] = LOCAL

    Config: ClassVar[type[FrameConfig]] = FrameConfig

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()
        self._loaded: Resting | None = None

    def load(self) -> torch.nn.Module:
        """The network that judges, once. Raises `UserError` when its checkpoint cannot be loaded."""
        raise NotImplementedError

    def judge(self, frames: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores ``[B, N]`` of N frames ``[B, N, 3, H, W]`` in [0, 1] for B prompts; the network is on its device."""
        raise NotImplementedError

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under the reward's name, pooled as `Config.pooling` says, and under the other poolings for the log.

        clips: ``[B, F, 3, H, W]`` in [0, 1]. A clip with a value that is not finite gets NaN.
        """
        assert clips.ndim == 5 and len(clips) == len(prompts), "one prompt a clip"
        with self.judging.resident():
            scores = self.judge(clips[:, evenly_spaced(clips.shape[1], self.config.frames)], prompts).float().cpu()
        scores[~finite(clips)] = torch.nan
        parts = pooled(scores, self.config.share)
        return {self.name: parts.pop(self.config.pooling), **parts}

    @property
    def judging(self) -> Resting:
        """The network, where it lies."""
        if self._loaded is None:
            self._loaded = Resting(self.load(), self.config)
        return self._loaded


def pooled(scores: torch.Tensor, share: float) -> dict[str, torch.Tensor]:
    """``[B]`` by pooling of the scores ``[B, N]`` of frames."""
    count = scores.shape[1]
    best = scores.sort(1, descending=True).values[:, : math.ceil(share * count)]
    last = scores[:, count - math.ceil(count / 4) :]
    return {"mean": scores.mean(1), "min": scores.amin(1), "top_share": best.mean(1), "last_quarter": last.mean(1)}


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` frame numbers from 0 to length - 1, all of them when count is 0 or larger than the clip."""
    if not 0 < count < length:
        return list(range(length))
    if count == 1:
        return [(length - 1) // 2]
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]
