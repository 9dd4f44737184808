"""Rewards as metrics, with the same settings: what a recipe does not train on may judge it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from vidalign.evaluation.metrics.base import Metric
from vidalign.rewards import aesthetic, clip_score, motion, pick_score


class RewardMetric(Metric):
    """What a reward says of finished clips: its score under ``score``, and what it logs beside it."""

    reward: ClassVar[Any]

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._judge = self.reward(self.config)

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` by name, see `Metric.score`."""
        values = self._judge.score(clips, prompts)
        return {"score": values.pop(self.reward.name), **values}


def metric_of(reward: Any, *, version: str = "1", name: str = "") -> type[RewardMetric]:
    """The metric of a reward that judges clips. version: of its numbers, see `Metric.version`; name: where that of the
    reward is taken by another metric."""
    parts = {"name": name or reward.name, "version": version, "reward": reward, "Config": reward.Config}
    return type(reward.__name__, (RewardMetric,), {**parts, "__doc__": reward.__doc__, "__module__": __name__})


ClipScore = metric_of(clip_score.ClipScoreReward, version="2")
PickScore = metric_of(pick_score.PickScore)
Aesthetic = metric_of(aesthetic.Aesthetic)
Motion = metric_of(motion.MotionReward, name="flow_motion")
