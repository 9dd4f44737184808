"""Scorer of the video world: the training rewards, from pixels and the caption alone.

Palette un-mixing -> soft masks -> moments -> least-squares fits of the laws (`laws.py`) -> super-sampled re-render.
Everything is judged per frame and per object, then pooled with a power mean of order -4. So the worst frame of the
worst object decides and the score stays climbable (and differentiable in the pixels):

- ``text_alignment``: geometric mean of colour, count, shape, size and motion. Motion is the posterior of the captioned
  law among all laws and "none of them".
- ``motion_quality``: ``1 / (1 + (rms / .02)^2)`` of the track under the captioned law (rms in picture widths,
  of the worse object), times permanence and presence.
- ``visual_quality``: ``1 / (1 + FVU / .06)``, energy off the manifold of renderable frames over the energy of the
  objects. It does not look at the caption.
- ``strict_pass``: 1 when all attributes are right in every frame and for every object, no frame leaves the
  trajectory, and motion and visual quality exceed .5. Select on this, train on the soft ones.

Works for 3 to 48 frames. The auditor shares nothing with this file but the world's constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from vidalign.worlds.scoring import Attributes, by_quarter, in_slices
from vidalign.worlds.video import laws
from vidalign.worlds.video.captions import parse
from vidalign.worlds.video.constants import COLOURS, EXTENT, SHAPES, SIZE, SIZES
from vidalign.worlds.video.looks import FLOOR_SCORE, HARMONIC, Objects, gaze, pool

SCORES = ("text_alignment", "motion_quality", "visual_quality", "strict_pass")
SLICE = 16
"""Clips judged at a time: larger intermediate tensors leave the caches and cost half the speed."""


@dataclass
class Target:
    """What B captions say: colour, shape ``[B, 2]`` indices, radius ``[B]``, pair ``[B]``, law ``[B]``."""

    colour: torch.Tensor
    shape: torch.Tensor
    radius: torch.Tensor
    pair: torch.Tensor
    law: torch.Tensor
    extents: torch.Tensor


@dataclass
class Judgement:
    """Everything that `score` and `quarter_scores` pool: per-frame values ``[B, F]``, `motion` ``[B]``."""

    attributes: Attributes
    motion: torch.Tensor
    law_right: torch.Tensor
    deviation: torch.Tensor  # squared, pixels, [B, F, 2]
    visual: torch.Tensor


@lru_cache(maxsize=8192)
def _read(prompt: str) -> tuple[tuple[int, int], tuple[int, int], float, bool, int]:
    spec = parse(prompt)
    (colour, shape), (other, other_shape) = spec.objects[0], spec.objects[-1]
    return (
        (COLOURS.index(colour), COLOURS.index(other)),
        (SHAPES.index(shape), SHAPES.index(other_shape)),
        SIZES[spec.size],
        len(spec.objects) > 1,
        laws.LAWS.index(spec.motion),
    )


def _targets(prompts: Sequence[str], clips: torch.Tensor) -> Target:
    colour, shape, radius, pair, law = zip(*(_read(prompt) for prompt in prompts), strict=True)
    device = clips.device
    shapes = torch.tensor(shape, device=device)
    radii = torch.tensor(radius, device=device)
    extent = torch.tensor([EXTENT[name] for name in SHAPES], device=device)
    return Target(
        torch.tensor(colour, device=device),
        shapes,
        radii,
        torch.tensor(pair, device=device),
        torch.tensor(law, device=device),
        extent[shapes] * radii[:, None],
    )


def _worse(values: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    """The lower of two objects, ``[B, F, 2]`` -> ``[B, F]``; a clip of one object has only the first."""
    return torch.where(pair[:, None], values.amin(-1), values[..., 0])


def _attributes(captioned: Objects, total: torch.Tensor, target: Target) -> Attributes:
    """Judge the captioned objects; captioned: ``[B, F, 2]`` each, total: all colours ``[B, F, colours]``."""
    pair = target.pair
    area = (math.pi * target.radius**2)[:, None, None]
    presence = (captioned.mass / (0.6 * area)).clamp(0, 1)
    own = torch.zeros_like(total[:, 0]).scatter(1, target.colour, 1.0)[:, None]
    wrong = (total * (1 - own)).sum(-1)
    seen = torch.where(pair[:, None], captioned.mass.sum(-1), captioned.mass[..., 0])
    stray = (total.sum(-1) - seen).clamp(min=0) / area[..., 0]
    count = _worse(presence, pair) / (1 + (stray / 0.3) ** 2)
    colour = presence * (captioned.mass / (captioned.mass + wrong[..., None] + 1e-4))
    targets = total.new_tensor([HARMONIC[name] for name in SHAPES])
    weights = (1 + ((captioned.harmonic[..., None] - targets) / 0.05) ** 2) ** -2
    likely = weights.gather(-1, target.shape[:, None, :, None].expand(*weights.shape[:-1], 1))[..., 0]
    shape = likely / (weights.sum(-1) + 0.002) / (1 + ((captioned.spread - 0.515).clamp(min=0) / 0.25) ** 2)
    off = (captioned.mass.clamp(min=1e-3) / area).log()
    size = (1 + (off / 0.35) ** 2) ** -2
    median = captioned.mass.detach().median(1, keepdim=True).values
    lost = ((captioned.mass + 0.5) / (median + 0.5)).log()
    permanence = 1 / (1 + (lost / 0.4) ** 2)
    right = (colour > 0.7) & (off.abs() < 0.4) & (likely >= weights.amax(-1)) & (shape > 0.5)
    right &= (presence > 0.9) & (count[..., None] > 0.5)
    return Attributes(
        colour=_worse(colour, pair),
        count=count,
        shape=_worse(shape, pair),
        size=_worse(size, pair),
        presence=_worse(presence, pair),
        permanence=_worse(permanence, pair),
        right=_worse(right.to(total), pair) > 0.5,
    )


def _posterior(track: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posterior ``[B]`` of the captioned law, is it the likeliest, squared deviations ``[B, F, 2]``.

    A law's weight is ``(1 + mse / .4^2)^-3`` with the mse of its worse object; "no law" has an mse of 3.
    """
    fitted = laws.fit(track.detach(), target.extents)
    squares = (track.double()[:, None] - fitted).square().sum(-1)  # [B, laws, F, 2]
    error = squares.mean(2)
    error = torch.where(target.pair[:, None], error.amax(-1), error[..., 0])
    collisions = torch.tensor([law.startswith("hit") for law in laws.LAWS], device=track.device)
    weight = (1 + error / 0.16) ** -3 * ~(collisions & ~target.pair[:, None])
    rows = torch.arange(len(track), device=track.device)
    chosen = weight[rows, target.law]
    none = (1 + 3 / 0.16) ** -3
    return (
        chosen / (weight.sum(1) + none),
        chosen >= weight.amax(1).clamp(min=none),
        squares[rows, target.law],
    )


def judge(clips: torch.Tensor, prompts: Sequence[str]) -> Judgement:
    """Measure clips ``[B, F, 3, H, W]`` in [0, 1] against their captions."""
    target = _targets(prompts, clips)
    seen = gaze(clips, target.colour)
    posterior, law_right, deviation = _posterior(seen.captioned.centre, target)
    return Judgement(
        attributes=_attributes(seen.captioned, seen.total, target),
        motion=posterior.to(clips.dtype),
        law_right=law_right,
        deviation=torch.where(target.pair[:, None, None], deviation, deviation[..., :1]).to(clips.dtype),
        visual=seen.visual,
    )


def _soft_scores(j: Judgement, frames: slice) -> dict[str, torch.Tensor]:
    a = j.attributes
    parts = [pool(v[:, frames]) for v in (a.colour, a.count, a.shape, a.size)]
    parts.append(j.motion.clamp(min=FLOOR_SCORE))
    rms2 = j.deviation[:, frames].mean(1).amax(-1) / SIZE**2
    lasting = pool(a.permanence[:, frames]) * pool(a.presence[:, frames])
    return {
        "text_alignment": torch.stack(parts).clamp(min=FLOOR_SCORE).log().mean(0).exp(),
        "motion_quality": lasting / (1 + rms2 / 0.02**2),
        "visual_quality": pool(j.visual[:, frames]),
    }


def _score_slice(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    j = judge(clips, prompts)
    out = _soft_scores(j, slice(None))
    out["strict_pass"] = (
        j.attributes.right.all(1)
        & j.law_right
        & (j.deviation.amax((1, 2)) < 1.0)
        & (out["motion_quality"] > 0.5)
        & (out["visual_quality"] > 0.5)
    ).to(clips.dtype)
    return out


def score(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Scores ``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1], named `SCORES`; higher is better.

    A clip with pixels that are not finite scores NaN. Raises `DataError` for a prompt that is no caption.
    """
    return in_slices(_score_slice, clips, prompts, SCORES, SLICE)


def quarter_scores(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The three soft scores of every quarter of long clips, ``[B, 4]``; the law is fitted to all.

    Log the minimum and the last quarter: a clip that starts well and drifts shows there first.
    """
    j = judge(clips, prompts)
    return by_quarter(partial(_soft_scores, j), clips.shape[1], SCORES[:3])
