"""Rewards as metrics, with the same settings: what a recipe does not train on may judge it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from vidalign.evaluation.metrics.base import Metric
from vidalign.rewards import aesthetic, clip_score, motion, pick_score, vlm_judge


class RewardMetric(Metric):
    """What a reward says of finished clips: its score under ``score``, and what it logs beside it."""

    reward: ClassVar[Any]

    def __init_subclass__(cls) -> None:
        setattr(cls, "Config", cls.reward.Config)  # noqa: B010

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._judge = self.reward(self.config)

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` by name, see `Metric.score`."""
        values = self._judge.score(clips, prompts)
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


class Motion(RewardMetric):
    """Amount and smoothness of motion by block matching, for prompts of any kind."""

    name, reward = "flow_motion", motion.MotionReward


class Judge(RewardMetric):
    """What a vision-language model says of the frames of a clip, asked a question of one's own."""

    name, reward = "vlm_judge", vlm_judge.VLMJudge
