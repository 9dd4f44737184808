"""The reward models of `vidalign.rewards` as metrics: everything that each says of a clip, with its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vidalign.evaluation.metrics.base import Metric
from vidalign.rewards.hps_v3 import HPSv3Reward
from vidalign.rewards.video_align import VideoAlignReward, VideoRewardConfig


class HPSv3(Metric):
    """HPSv3 of the frames of a clip: best 30 %, minimum, last quarter, and the mean spread sigma."""

    name: ClassVar[str] = "hps_v3"
    version: ClassVar[str] = "1"

    @dataclass
    class Config(HPSv3Reward.Config):
        """Those of the reward."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._judge = HPSv3Reward(config)

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``top_share``, ``min``, ``last_quarter`` and ``sigma``, see `HPSv3Reward.parts`."""
        return self._judge.parts(clips, prompts)


class VideoAlign(Metric):
    """VideoReward's visual quality, motion quality on grey frames and text alignment of a clip, normalised."""

    name: ClassVar[str] = "video_align"
    version: ClassVar[str] = "1"

    @dataclass
    class Config(VideoRewardConfig):
        """Those of the reward but its dimension."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._judge = VideoAlignReward(VideoAlignReward.Config(**vars(self.config)))

    def score(self, clips: torch.Tensor, prompts: Sequence[str], fps: float = 0.0) -> dict[str, torch.Tensor]:
        """``[B]`` under ``VQ``, ``MQ`` and ``TA`` of clips with `fps` frames a second, see `VideoAlignReward`."""
        assert fps > 0, "whoever judges by it gives the frame rate"
        return self._judge.parts(clips, prompts, fps)
