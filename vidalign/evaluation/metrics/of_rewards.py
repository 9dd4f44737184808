"""Rewards as metrics, with the same settings: what a recipe does not train on may judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vidalign.asked import rate_for
from vidalign.evaluation.metrics.base import Metric
from vidalign.rewards import aesthetic, clip_score, hps_v3, motion, pick_score, video_align, vlm_judge


class RewardMetric(Metric):
    """What a reward says of finished clips: its score under ``score``, and what it logs beside it."""

    reward: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        setattr(cls, "Config", cls.reward.Config)  # noqa: B010

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._judge = self.reward(self.config)

    def score(self, clips: torch.Tensor, prompts: Sequence[str], fps: float | None = None) -> dict[str, torch.Tensor]:
        """``[B]`` by name, see `Metric.score`."""
        values = self._judge.score(clips, prompts, **rate_for(self._judge, "reward", self.reward.name, fps))
        return {"score": values.pop(self.reward.name), **values}


class ClipScore(RewardMetric):
    """CLIP score of frames, in [0, 100]: how well they fit the prompt."""

    name, version, reward = "clip_score", "2", clip_score.ClipScoreReward


class PickScore(RewardMetric):
    """PickScore of frames: which pictures people prefer for the prompt."""

    name, reward = "pick_score", pick_score.PickScore


class Aesthetic(RewardMetric):
    """Rating of frames by LAION's aesthetic predictor, about 1 to 10."""

    name, reward = "aesthetic", aesthetic.Aesthetic


class HPSv3(RewardMetric):
    """HPSv3 of frames: how much people prefer them for the prompt."""

    name, reward = "hps_v3", hps_v3.HPSv3Reward


class Motion(RewardMetric):
    """Amount and smoothness of motion by block matching, for prompts of any kind."""

    name, reward = "flow_motion", motion.MotionReward


class Judge(RewardMetric):
    """What a vision-language model says of the frames of a clip, asked a question of one's own."""

    name, reward = "vlm_judge", vlm_judge.VLMJudge


class VideoAlign(Metric):
    """VideoReward's visual quality, motion quality on grey frames and text alignment of a clip, normalised."""

    name = "video_align"

    @dataclass
    class Config(video_align.VideoRewardConfig):
        """Those of the reward but its dimension."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._judge = video_align.VideoAlignReward(video_align.VideoAlignReward.Config(**vars(self.config)))

    def score(  # type: ignore[override]  # whoever makes a metric gives it the frame rate
        self, clips: torch.Tensor, prompts: Sequence[str], fps: float
    ) -> dict[str, torch.Tensor]:
        """``[B]`` under ``VQ``, ``MQ`` and ``TA`` of clips with `fps` frames a second, see `VideoAlignReward`."""
        return self._judge.parts(clips, prompts, fps)
