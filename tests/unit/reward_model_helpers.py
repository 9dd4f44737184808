"""Judges on the tiny reward models of `tiny_judges`, and clips for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign.rewards.hps_v3 import HPSv3Reward
from vidalign.rewards.video_align import VideoAlignReward

PROMPTS = ["a red ball falls", "a blue box", "a red ball falls"]
SMALL = {"min_pixels": 64, "max_pixels": 448 * 448, "dtype": "float32"}
"""No frame of the tests is enlarged."""
SIZED = pytest.mark.filterwarnings("ignore:.*the checkpoint was trained with")


def noisy_clips() -> Tensor:
    """``[3, 9, 3, 16, 24]`` on the 8-bit grid, so that rounding changes nothing and no resizing happens."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (3, 9, 3, 16, 24), generator=generator)
    return (noise * torch.rand(3, 9, 3, 1, 1, generator=generator)).round() / 255


def judge(folder: Path, backbone: Path, dimension: Any = "VQ", **settings: Any) -> VideoAlignReward:
    """One dimension of VideoReward."""
    values = SMALL | {"path": str(folder), "backbone": str(backbone), **settings}
    return VideoAlignReward(VideoAlignReward.Config(dimension=dimension, **values))


def hps_judge(file: Path, backbone: Path, **settings: Any) -> HPSv3Reward:
    """HPSv3."""
    return HPSv3Reward(HPSv3Reward.Config(**(SMALL | {"path": str(file), "backbone": str(backbone), **settings})))
