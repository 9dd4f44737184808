"""Rewards of the embedded world: three views of one pass of its scorer (`vidalign.worlds.video.scorer`)."""

from __future__ import annotations

from vidalign.worlds.rewards import LastBatch, WorldReward
from vidalign.worlds.video.captions import is_caption
from vidalign.worlds.video.scorer import SCORES, score


class _Reward(WorldReward):
    batch = LastBatch("the embedded world", lambda clips, prompts: score(clips, prompts), SCORES, is_caption)
    can_score = staticmethod(is_caption)


class TextAlignment(_Reward):
    """Colour, count, shape, size and motion as the caption says."""

    name = "text_alignment"


class MotionQuality(_Reward):
    """The captioned law of motion, kept in every frame by objects that stay."""

    name = "motion_quality"


class VisualQuality(_Reward):
    """Nearness to what the world can render, whatever the caption."""

    name = "visual_quality"
