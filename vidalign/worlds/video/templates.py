"""What an auditor sees of a picture: nearest colours, hard masks, medians and binary templates.

Nothing here is shared with a scorer but the world's constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from vidalign.worlds.video.constants import BACKGROUND, COLOURS, EXTENT, PALETTE, SHAPES, SIZES
from vidalign.worlds.video.kinematics import ramp

CROP = 16
"""Width of the square around an object in which it is judged."""
SHIFTS = tuple(0.25 * k for k in range(-4, 5))
"""Offsets of a template's centre from the median pixel, pixels."""
LEVELS = (0.25, 0.5, 0.75)
"""Shares of full colour above which a pixel belongs to the hard mask of a level."""


@dataclass
class Bank:
    """Binary templates, `masks` ``[T, levels * CROP^2]`` and `area` ``[T]``; T: shapes, sizes, shifts."""

    masks: torch.Tensor
    area: torch.Tensor


@lru_cache(maxsize=1)
def _bank() -> Bank:
    """The templates, drawn by their outlines; a level moves the outline by what it cuts off an edge."""
    pixel = torch.arange(CROP, dtype=torch.float64) + 0.5
    masks = []
    for shape in SHAPES:
        for radius in SIZES.values():
            for down in SHIFTS:
                for across in SHIFTS:
                    x = (pixel - CROP / 2 - 0.5 - across).abs()[None]
                    y = (pixel - CROP / 2 - 0.5 - down).abs()[:, None]
                    norms = {"circle": torch.hypot(x, y), "square": torch.maximum(x, y), "diamond": x + y}
                    slope = 2**0.5 if shape == "diamond" else 1.0
                    edge = [EXTENT[shape] * radius + slope * (0.5 - level) for level in LEVELS]
                    masks.append(torch.stack([norms[shape] < e for e in edge]).flatten())
    bank = torch.stack(masks).float()
    return Bank(bank, bank.sum(1))


def labels_of(clips: torch.Tensor) -> torch.Tensor:
    """Label of the nearest colour of every pixel, ``[B, F, H, W]``: 0 ground, k + 1 palette colour k.

    The codebook holds the ground and three tones of each colour: all of it, 3/4, and 1/4, which is ground.
    """
    ground = clips.new_tensor(BACKGROUND)
    full = clips.new_tensor([PALETTE[name] for name in COLOURS])
    tones = [ground + share * (full - ground) for share in (0.25, 0.75, 1.0)]
    book = torch.cat((ground[None], *tones))
    likeness = book @ clips.flatten(-2) - 0.5 * book.square().sum(1, keepdim=True)
    nothing, partly, wholly = likeness.split([1 + len(COLOURS), len(COLOURS), len(COLOURS)], -2)
    best = torch.maximum(partly, wholly)
    top = best.amax(-2, keepdim=True)
    number = torch.arange(1.0, len(COLOURS) + 1, device=clips.device)[:, None]
    label = ((best >= top) * number).amax(-2) * (top[..., 0, :] > nothing.amax(-2))
    frames: torch.Tensor = label.unflatten(-1, clips.shape[-2:])
    return frames


def _median(weights: torch.Tensor) -> torch.Tensor:
    """Interpolated median of profiles ``[..., N]`` with bins of width 1; their middle when empty."""
    total = weights.cumsum(-1)
    half = total[..., -1:] / 2
    index = (total < half).sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    inside = weights.gather(-1, index)
    before = total.gather(-1, index) - inside
    position = index + ((half - before) / inside.clamp(min=1e-6)).clamp(0, 1)
    return torch.where(half > 0, position, weights.shape[-1] / 2)[..., 0]


@dataclass
class Seen:
    """R tracked objects (clip, colour), ``[R, F]`` each: what the crop around the object shows.

    centre ``[R, F, 2]`` pixels; overlap ``[R, F, shapes, sizes]`` with the best template of each kind.
    """

    centre: torch.Tensor
    area: torch.Tensor
    foreign: torch.Tensor
    overlap: torch.Tensor
    impurity: torch.Tensor
    softness: torch.Tensor


def _crops(maps: torch.Tensor, column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Squares ``[R, F, C, CROP, CROP]`` of maps ``[R, F, C, H, W]`` around pixels; 0 outside."""
    half = CROP // 2
    padded = torch.nn.functional.pad(maps, (half, half, half, half))
    step = torch.arange(CROP, device=maps.device)
    index = (row[..., None, None] + step[:, None]) * padded.shape[-1] + column[..., None, None] + step
    index = index.flatten(-2)[:, :, None].expand(-1, -1, maps.shape[2], -1)
    crops: torch.Tensor = padded.flatten(-2).gather(-1, index).unflatten(-1, (CROP, CROP))
    return crops


def watch(
    clips: torch.Tensor, labels: torch.Tensor, clip: torch.Tensor, colour: torch.Tensor, other: torch.Tensor
) -> Seen:
    """Find the object of each row in every frame; clip, colour, other: ``[R]`` (-2: no partner)."""
    ground = clips.new_tensor(BACKGROUND)[:, None, None]
    rays = clips.new_tensor([PALETTE[name] for name in COLOURS])[colour][:, None, :, None, None] - ground
    label = labels[clip]
    mask = (label == colour[:, None, None, None] + 1).to(clips)
    column = _median(mask.sum(-2)).long().clamp(max=clips.shape[-1] - 1)
    row = _median(mask.sum(-1)).long().clamp(max=clips.shape[-2] - 1)
    lit = clips[clip] - ground
    maps = torch.cat((label[:, :, None].to(clips), lit), 2)
    crop = _crops(maps, column, row)
    name, lit = crop[:, :, 0], crop[:, :, 1:]
    own = name == colour[:, None, None, None] + 1
    partner = name == other[:, None, None, None] + 1
    foreign = (name > 0) & ~own & ~partner
    hard = own.to(clips)
    area = hard.sum((-2, -1))
    rim = torch.nn.functional.max_pool2d(hard, 3, 1, 1) > 0
    grey = (lit.abs().sum(2) / rays.sum(2)).clamp(0, 1) * (rim & ((name == 0) | own))
    corner = torch.stack((column, row), -1) - CROP // 2
    centre = corner + torch.stack((_median(grey.sum(-2)), _median(grey.sum(-1))), -1)
    core = 1 - torch.nn.functional.max_pool2d(1 - hard, 3, 1, 1)
    wrong = (lit - rays).abs().mean(2)
    between = ((grey > 0.12) & (grey < 0.88)).to(clips).sum((-2, -1))
    bank = _bank()
    masks, sizes = bank.masks.to(clips), bank.area.to(clips)
    levels = torch.stack([grey > level for level in LEVELS], 2).to(clips).flatten(2)
    common = levels @ masks.T
    overlap = (
        (common / (levels.sum(-1, keepdim=True) + sizes - common)).unflatten(-1, (len(SHAPES), len(SIZES), -1)).amax(-1)
    )
    return Seen(
        centre=centre,
        area=area,
        foreign=foreign.to(clips).sum((-2, -1)),
        overlap=overlap,
        impurity=(wrong * core).sum((-2, -1)) / core.sum((-2, -1)).clamp(min=1),
        softness=between / area.clamp(min=1).sqrt(),
    )


def object_metrics(seen: Seen, shape: torch.Tensor, radius: torch.Tensor) -> dict[str, torch.Tensor]:
    """Graded judgements ``[R, F]`` of each object against its captioned shape and radius ``[R]``."""
    expected = (math.pi * radius**2)[:, None]
    present = (seen.area / (0.5 * expected)).clamp(0, 1)
    best = seen.overlap.amax(-1)
    captioned = best.gather(-1, shape[:, None, None].expand(-1, best.shape[1], 1))[..., 0]
    rival = best.scatter(-1, shape[:, None, None].expand(-1, best.shape[1], 1), 0.0).amax(-1)
    off = (seen.area.clamp(min=0.5) / expected).log().abs()
    median = seen.area.median(1, keepdim=True).values.clamp(min=1)
    change = (seen.area / median - 1).abs()
    likeness = ramp(best.amax(-1), 0.5, 0.95)
    sharp = 1 / (1 + ((seen.softness - 4.4).clamp(min=0) / 1.5) ** 2)
    pure = torch.exp(-(seen.impurity - 0.02).clamp(min=0) / 0.15)
    return {
        "colour": present * ramp(seen.area / (seen.area + seen.foreign).clamp(min=1), 0.0, 0.92),
        "shape": present * (0.5 + (captioned - rival) / 0.1).clamp(0, 1) * ramp(captioned, 0.4, 0.85),
        "size": present * (1 - ramp(off, 0.22, 0.7)),
        "appearance": present * (likeness * sharp * pure) ** (1 / 3),
        "permanence": ramp(seen.area / expected, 0.1, 0.45) * (1 - ramp(change, 0.25, 0.9)),
        "visible": (seen.area >= 4).to(seen.area),
    }


def cleanness(clips: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cleanness of the ground in every frame, ``[B, F]``: mean error away from any object."""
    ground = clips.new_tensor(BACKGROUND)[:, None, None]
    away = 1 - torch.nn.functional.max_pool2d((labels > 0).to(clips), 3, 1, 1)
    error = ((clips - ground).abs().mean(2) * away).sum((-2, -1)) / away.sum((-2, -1)).clamp(min=1)
    return torch.exp(-(error - 0.01).clamp(min=0) / 0.15)


def worst(values: torch.Tensor, clip: torch.Tensor, batch: int) -> torch.Tensor:
    """Lowest value over the objects of a clip: ``[R, F]`` -> ``[B, F]``."""
    start = values.new_full((batch, values.shape[1]), torch.inf)
    return start.scatter_reduce(0, clip[:, None].expand_as(values), values, "amin")
