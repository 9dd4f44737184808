"""A reward behind HTTP as a metric, with the settings of `vidalign.rewards.remote`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vidalign.evaluation.metrics.base import Metric
from vidalign.rewards.remote import Remote


class RemoteMetric(Metric):
    """What servers say of a clip: the reward under its own name, and its further names."""

    name: ClassVar[str] = "remote"
    version: ClassVar[str] = "1"

    @dataclass
    class Config(Remote.Config):
        """Those of the reward."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._reward = Remote(config or self.Config())

    @classmethod
    def preflight(cls, config: Remote.Config) -> None:
        """As that of the reward."""
        Remote.preflight(config)

    def score(self, clips: torch.Tensor, prompts: Sequence[str], fps: float | None = None) -> dict[str, torch.Tensor]:
        """``[B]`` by name, see `Remote.score`."""
        scores = self._reward.score(clips, prompts, fps=fps)
        return {self._reward.config.reward: scores.pop(Remote.name), **scores}
