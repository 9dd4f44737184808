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
from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from vidalign.worlds.video import laws
from vidalign.worlds.video.captions import parse
from vidalign.worlds.video.constants import BACKGROUND, COLOURS, EXTENT, PALETTE, SHAPES, SIZE, SIZES

SCORES = ("text_alignment", "motion_quality", "visual_quality", "strict_pass")
FLOOR_SCORE = 0.02
"""Smallest value of an attribute within a geometric mean, so that one failure leaves the others visible."""
GATE = (0.08, 0.15)
"""Coverage below which a pixel is ground, and the width of the soft step."""
HARMONIC = {"circle": 0.0, "square": -4 * math.pi**2 / 240, "diamond": 4 * math.pi**2 / 240}
"""``E[x^4 + y^4 - 6 x^2 y^2] / r^4`` over a shape; harmonic: an isotropic blur leaves it."""
SMALL_AREA = math.pi * SIZES["small"] ** 2
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
class Objects:
    """Measurements of R (clip, colour) rows in every frame, ``[R, F]`` unless said otherwise.

    mass: covered area, pixels; centre ``[R, F, 2]``; harmonic: 4-fold moment over r^4; spread: second moment
    over r^2, with r the radius of a disc of that mass.
    """

    mass: torch.Tensor
    centre: torch.Tensor
    harmonic: torch.Tensor
    spread: torch.Tensor


@dataclass
class Attributes:
    """Soft judgements of every frame ``[B, F]``, of the worse object; `right` is their hard version."""

    colour: torch.Tensor
    count: torch.Tensor
    shape: torch.Tensor
    size: torch.Tensor
    presence: torch.Tensor
    permanence: torch.Tensor
    right: torch.Tensor


@dataclass
class Advantages:
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


def _unmix(clips: torch.Tensor) -> torch.Tensor:
    """Coverage by every palette colour: ``[B, F, 3, H, W]`` -> ``[B, F, colours, H * W]`` in [0, 1].

    A pixel between ground and a colour lies on a ray from the ground. A softmax over the squared sine of the angle to
    each ray shares it out. Its length along the ray is the coverage.
    """
    ground = clips.new_tensor(BACKGROUND)[:, None]
    rays = clips.new_tensor([PALETTE[name] for name in COLOURS]) - ground[:, 0]
    squares = rays.square().sum(1, keepdim=True)
    lit = clips.flatten(-2) - ground
    sharpness = 25 / (lit.square().sum(-2, keepdim=True) + 1e-6)
    along = (rays / squares) @ lit
    share = (along * along.abs() * (sharpness * squares)).exp()
    covered = along.clamp(0, 1)
    step = ((covered - GATE[0]) * (1 / GATE[1])).clamp(0, 1)
    return share * covered * (step * step * (3 - 2 * step)) * (1 / share.sum(-2, keepdim=True))


def _measure(masks: torch.Tensor) -> Objects:
    """Moments of one object per row in a window around its densest place; masks: ``[R, F, H, W]``."""
    height, width = masks.shape[-2:]
    x = torch.arange(width, device=masks.device, dtype=masks.dtype) + 0.5
    y = torch.arange(height, device=masks.device, dtype=masks.dtype) + 0.5
    with torch.no_grad():
        across = ((x[:, None] - x).abs() < 4.1).to(masks)
        down = ((y[:, None] - y).abs() < 4.1).to(masks)
        index = (down @ masks @ across).flatten(-2).argmax(-1)
    centre = torch.stack((index % width + 0.5, index.div(width, rounding_mode="floor") + 0.5), -1).to(masks)
    radius = torch.full_like(centre[..., 0], 5.5)
    for _ in range(2):
        dx, dy = x - centre[..., :1], y - centre[..., 1:]
        dist = (dx.square()[..., None, :] + dy.square()[..., None] + 1e-9).sqrt()
        inside = masks * (radius[..., None, None] + 1 - dist).clamp(0, 1)
        mass = inside.sum((-2, -1))
        total = mass + 1e-4
        centre = centre + torch.stack(
            ((inside.sum(-2) * dx).sum(-1) / total, (inside.sum(-1) * dy).sum(-1) / total), -1
        )
        radius = (1.28 * (mass.detach() / math.pi).sqrt() + 1.0).clamp(3.5, 7.5)
    dx2, dy2 = (x - centre[..., :1]).square(), (y - centre[..., 1:]).square()
    dist = (dx2[..., None, :] + dy2[..., None] + 1e-9).sqrt()
    inside = masks * (radius[..., None, None] + 1 - dist).clamp(0, 1)
    mass = inside.sum((-2, -1))
    columns, rows = inside.sum(-2), inside.sum(-1)
    total = mass + 1e-4
    square = total.detach() / math.pi
    cross = torch.einsum("...hw,...h,...w->...", inside, dy2, dx2)
    fourth = (columns * dx2.square()).sum(-1) + (rows * dy2.square()).sum(-1) - 6 * cross
    second = (columns * dx2).sum(-1) + (rows * dy2).sum(-1)
    return Objects(mass, centre, fourth / (total * square.square()), second / (total * square))


def _rerender(shape: torch.Tensor, radius: torch.Tensor, centre: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Coverage of N objects, ``[N, H, W]``, from 2 x 2 samples a pixel (squares: the exact area)."""
    height, width = size
    x = torch.arange(width, device=centre.device, dtype=centre.dtype) + 0.5 - centre[:, :1]
    y = torch.arange(height, device=centre.device, dtype=centre.dtype) + 0.5 - centre[:, 1:]
    out = centre.new_zeros(len(centre), height, width)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero()[:, 0]
        reach = EXTENT[name] * radius[rows, None]
        if name == "square":
            columns, lines = ((0.5 + reach - v[rows].abs()).clamp(0, 1) for v in (x, y))
            out = out.index_put((rows,), lines[:, :, None] * columns[:, None])
            continue
        fine = torch.stack([_sample(name, x[rows] + dx, y[rows] + dy, reach) for dx in _STEPS for dy in _STEPS])
        out = out.index_put((rows,), fine.mean(0))
    return out


_STEPS = (-0.25, 0.25)


def _sample(name: str, x: torch.Tensor, y: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    """Coverage of quarter pixels around x ``[n, W]`` and y ``[n, H]``: ``[n, H, W]``."""
    if name == "circle":
        distance = (x.square()[:, None] + y.square()[:, :, None] + 1e-9).sqrt() - reach[..., None]
    else:
        distance = (x.abs()[:, None] + y.abs()[:, :, None] - reach[..., None]) * 0.5**0.5
    return (0.5 - 2 * distance).clamp(0, 1)


def _visual(clips: torch.Tensor, objects: Objects, rows: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Visual quality of every frame, ``[B, F]``: its nearness to the frame that its objects would give.

    rows: clip and colour of each row of `objects` that is to be rendered.
    """
    batch, frames, _, height, width = clips.shape
    clip, colour = rows
    harmonic = clips.new_tensor([HARMONIC[name] for name in SHAPES])
    radii = clips.new_tensor(list(SIZES.values()))
    with torch.no_grad():
        shape = (objects.harmonic[..., None] - harmonic).abs().argmin(-1)
        size = (objects.mass[..., None].clamp(min=1e-3).log() - (math.pi * radii**2).log()).abs().argmin(-1)
    there = ((objects.mass / SMALL_AREA - 0.3) / 0.3).clamp(0, 1)
    drawn = _rerender(shape.flatten(), radii[size.flatten()], objects.centre.flatten(0, 1), (height, width))
    drawn = drawn.view(-1, frames, height, width) * there[..., None, None]
    ground = clips.new_tensor(BACKGROUND)
    rays = clips.new_tensor([PALETTE[name] for name in COLOURS]) - ground
    cover = clips.new_zeros(batch, frames, len(COLOURS), height * width)
    cover[clip, :, colour] = drawn.flatten(-2)
    cover = cover / cover.sum(-2, keepdim=True).clamp(min=1)
    error = clips.flatten(-2) - ground[:, None] - rays.T @ cover
    energy = (cover.sum(-1) * rays.square().sum(-1)).sum(-1)
    return energy / (energy + error.square().sum((-2, -1)) / 0.06 + 1e-3)


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


def _drawn(total: torch.Tensor) -> torch.Tensor:
    """Which colours a clip shows, ``[B, colours]``: at most two; total: their areas in every frame."""
    brightest = total.mean(1).topk(2, 1)
    enough = total.amax(1).gather(1, brightest.indices) > 0.3 * SMALL_AREA
    return torch.zeros_like(total[:, 0], dtype=torch.bool).scatter(1, brightest.indices, enough)


def appearance(pictures: torch.Tensor) -> torch.Tensor:
    """Visual quality ``[N]`` in [0, 1] of pictures ``[N, 3, H, W]`` in [0, 1], each by itself and without a caption."""
    cover = _unmix(pictures[:, None])
    with torch.no_grad():
        picture, colour = _drawn(cover.sum(-1)).nonzero().unbind(1)
    masks = cover.transpose(1, 2)[picture, colour].unflatten(-1, pictures.shape[-2:])
    return _visual(pictures[:, None], _measure(masks), (picture, colour))[:, 0]


def judge(clips: torch.Tensor, prompts: Sequence[str]) -> Advantages:
    """Measure clips ``[B, F, 3, H, W]`` in [0, 1] against their captions."""
    target = _targets(prompts, clips)
    batch, frames, _, height, width = clips.shape
    cover = _unmix(clips)
    total = cover.sum(-1)
    rows = torch.arange(batch, device=clips.device)[:, None]
    with torch.no_grad():
        drawn = _drawn(total)
        needed = drawn.clone()
        needed[rows, target.colour] = True
        clip, colour = needed.nonzero().unbind(1)
        place = torch.full_like(needed, -1, dtype=torch.long)
        place[clip, colour] = torch.arange(len(clip), device=clips.device)
        render = place[drawn]
    objects = _measure(cover.transpose(1, 2)[clip, colour].view(-1, frames, height, width))
    slots = place[rows, target.colour]  # [B, 2]
    captioned = Objects(*(getattr(objects, f.name)[slots].transpose(1, 2) for f in fields(Objects)))
    posterior, law_right, deviation = _posterior(captioned.centre, target)
    shown = Objects(*(getattr(objects, f.name)[render] for f in fields(Objects)))
    return Advantages(
        attributes=_attributes(captioned, total, target),
        motion=posterior.to(clips.dtype),
        law_right=law_right,
        deviation=torch.where(target.pair[:, None, None], deviation, deviation[..., :1]).to(clips.dtype),
        visual=_visual(clips, shown, (clip[render], colour[render])),
    )


def _pool(values: torch.Tensor) -> torch.Tensor:
    """Power mean of order -4 over frames, ``[B, F]`` -> ``[B]``: near the worst frame, yet climbable."""
    return values.clamp(min=FLOOR_SCORE).pow(-4).mean(1).pow(-0.25) * (values.amax(1) > 0)


def _soft_scores(j: Advantages, frames: slice) -> dict[str, torch.Tensor]:
    a = j.attributes
    parts = [_pool(v[:, frames]) for v in (a.colour, a.count, a.shape, a.size)]
    parts.append(j.motion.clamp(min=FLOOR_SCORE))
    rms2 = j.deviation[:, frames].mean(1).amax(-1) / SIZE**2
    lasting = _pool(a.permanence[:, frames]) * _pool(a.presence[:, frames])
    return {
        "text_alignment": torch.stack(parts).clamp(min=FLOOR_SCORE).log().mean(0).exp(),
        "motion_quality": lasting / (1 + rms2 / 0.02**2),
        "visual_quality": _pool(j.visual[:, frames]),
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
    broken = ~clips.flatten(1).isfinite().all(1)
    return {name: torch.where(broken, torch.nan, out[name]) for name in SCORES}


def score(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Scores ``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1], named `SCORES`; higher is better.

    A clip with pixels that are not finite scores NaN. Raises `DataError` for a prompt that is no caption.
    """
    assert clips.ndim == 5 and len(clips) == len(prompts) > 0, "one caption for each clip"
    starts = range(0, len(clips), SLICE)
    parts = [_score_slice(clips[k : k + SLICE], prompts[k : k + SLICE]) for k in starts]
    return {name: torch.cat([part[name] for part in parts]) for name in SCORES}


def quarter_scores(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The three soft scores of every quarter of long clips, ``[B, 4]``; the law is fitted to all.

    Log the minimum and the last quarter: a clip that starts well and drifts shows there first.
    """
    j = judge(clips, prompts)
    length = clips.shape[1] // 4
    assert length > 0, "quarters need at least four frames"
    parts = [_soft_scores(j, slice(n * length, (n + 1) * length)) for n in range(4)]
    return {name: torch.stack([part[name] for part in parts], 1) for name in SCORES[:3]}
