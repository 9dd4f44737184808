"""Metrics of the event world. Each has an answer for captions of the world only: other prompts are NaN.

``event_scorer``: the rewards that objectives train on. ``event_auditor``: the held-out judge. ``event_amount``: how
much moves, against the world. ``event_diversity``: spread of beginnings and events over seeds of a prompt.
``event_drift``, ``event_quarters``: how long clips hold; events are judged over all of a clip.
"""

from __future__ import annotations

import torch

from vidalign.worlds import metrics
from vidalign.worlds.events import auditor, scorer
from vidalign.worlds.events.captions import is_caption
from vidalign.worlds.events.diversity import diversity
from vidalign.worlds.events.judgement import judge
from vidalign.worlds.events.renderer import clips as render_clips


def _trained(clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
    scores = scorer.score(clips, prompts)
    return scores | {"composite": torch.stack([scores[name] for name in scorer.REWARDS]).mean(0)}


def _frames(clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
    seen = judge(clips, prompts)
    return {"visual": seen.visual, "colour": seen.attributes.colour, "shape": seen.attributes.shape}


WORLD = metrics.World(
    is_caption,
    scorer=_trained,
    auditor=auditor.audit,
    frames=_frames,
    quarters=scorer.quarter_scores,
    diversity=lambda clips, prompts: diversity(clips, prompts)["diversity"],
    truth=lambda captions, frames, numbers: render_clips(captions, frames, generator=numbers),
)


class EventScorer(metrics.Scorer):
    """The trained rewards, their mean, and the strict pass."""

    name, world = "event_scorer", WORLD


class EventAuditor(metrics.Auditor):
    """The held-out auditor."""

    name, world = "event_auditor", WORLD


class EventAmount(metrics.Motion):
    """How much moves, against the world."""

    name, world = "event_amount", WORLD


class EventDiversity(metrics.Diversity):
    """Spread over the seeds of a prompt."""

    name, world = "event_diversity", WORLD


class EventDrift(metrics.Drift):
    """Looks of every chunk of a long clip."""

    name, world = "event_drift", WORLD


class EventQuarters(metrics.Quarters):
    """The rewards of every quarter of a long clip."""

    name, world = "event_quarters", WORLD
