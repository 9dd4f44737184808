"""The CLIP score of `vidalign.rewards.clip_score` as a metric, with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vidalign.evaluation.metrics.base import Metric
from vidalign.rewards.clip_score import ClipScoreReward


class ClipScore(Metric):
    """Mean, minimum and last-quarter CLIP score over the frames of a clip, each in [0, 100]."""

    name: ClassVar[str] = "clip_score"
    version: ClassVar[str] = "1"

    @dataclass
    class Config(ClipScoreReward.Config):
        """Those of the reward."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._scorer = ClipScoreReward(config)

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``mean``, ``min`` and ``last_quarter``, see `ClipScoreReward.parts`."""
        return self._scorer.parts(clips, prompts)
