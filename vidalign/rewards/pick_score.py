"""PickScore: which of two pictures people prefer for a prompt, by a CLIP model trained on their choices.

Score of a frame: ``exp(logit_scale) cos(image, text)`` [Kirstain et al. 2023, arXiv 2305.01569], about 18 to 24; a
difference of d is a preference of ``1 / (1 + exp(-d))``. Frames are judged one by one: it does not see motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidalign.rewards.clip_score import ClipConfig, ClipReward


class PickScore(ClipReward):
    """Preference score of frames."""

    name: ClassVar[str] = "pick_score"

    @dataclass
    class Config(ClipConfig):
        model: str = "yuvalkirstain/PickScore_v1"
        """A folder written by `save_pretrained`, or a name on the Hugging Face hub."""
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        """Where tokenizer and picture processor are: the published checkpoint was trained with these; empty: beside the
        model."""

    @property
    def processor_name(self) -> str:
        return str(self.config.processor or self.config.model)

    def judge(self, frames: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """``[B, N]``, see `FrameReward.judge`."""
        scale: torch.Tensor = self.judging.network.logit_scale.exp().float()
        return scale * self.cosines(frames, prompts)
