"""Rewards of the event world: three views of one pass of its scorer (`vidalign.worlds.events.scorer`)."""

from __future__ import annotations

from vidalign.worlds.events.captions import is_caption
from vidalign.worlds.events.scorer import SCORES, score
from vidalign.worlds.rewards import LastBatch, WorldReward


class _Reward(WorldReward):
    batch = LastBatch("the event world", score, SCORES, is_caption)
    can_score = staticmethod(is_caption)


class EventAlignment(_Reward):
    """Colours, count, shapes, size and motion as the caption says, and an end as its second clause says."""

    name = "event_alignment"


class EventMotion(_Reward):
    """The captioned law of motion, exact between events, kept in every frame by objects that stay."""

    name = "event_motion"


class EventVisual(_Reward):
    """Nearness to what the world can render, whatever the caption."""

    name = "event_visual"
