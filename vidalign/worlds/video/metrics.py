"""Metrics of the embedded world. Each has an answer for captions of the world only: other prompts are NaN.

``world_scorer``: the rewards that objectives train on. ``world_auditor``: the held-out judge. ``motion``: how much
moves, against the world. ``diversity``: spread of the initial states over seeds of a prompt. ``drift``, ``quarters``:
how long clips hold; the law of motion is fitted to all of a clip.
"""

from __future__ import annotations

import torch

from vidalign.worlds import metrics
from vidalign.worlds.video import scorer
from vidalign.worlds.video.captions import is_caption
from vidalign.worlds.video.diversity import diversity
from vidalign.worlds.video.judges import AUDITOR, TRAINED, judge_world
from vidalign.worlds.video.renderer import clips as render_clips


def _of_judge(judge: str, clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
    found = judge_world(clips, prompts).items()
    return {name.replace(" ", "_"): values for (who, name), values in found if who == judge}


def _frames(clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
    seen = scorer.judge(clips, prompts)
    return {"visual": seen.visual, "colour": seen.attributes.colour, "shape": seen.attributes.shape}


WORLD = metrics.World(
    is_caption,
    scorer=lambda clips, prompts: _of_judge(TRAINED, clips, prompts),
    auditor=lambda clips, prompts: _of_judge(AUDITOR, clips, prompts),
    frames=_frames,
    quarters=scorer.quarter_scores,
    diversity=lambda clips, prompts: diversity(clips, prompts)["diversity"],
    truth=lambda captions, frames, numbers: render_clips(captions, frames, generator=numbers),
)


class WorldScorer(metrics.Scorer):
    """The trained rewards, their mean, and the strict pass."""

    name, world = "world_scorer", WORLD


class WorldAuditor(metrics.Auditor):
    """The held-out auditor."""

    name, world = "world_auditor", WORLD


class Motion(metrics.Motion):
    """How much moves, against the world."""

    name, world = "motion", WORLD


class Diversity(metrics.Diversity):
    """Spread over the seeds of a prompt."""

    name, world = "diversity", WORLD


class Drift(metrics.Drift):
    """Looks of every chunk of a long clip."""

    name, world = "drift", WORLD


class Quarters(metrics.Quarters):
    """The rewards of every quarter of a long clip."""

    name, world = "quarters", WORLD
