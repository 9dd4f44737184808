"""What a scorer sees of a picture: palette un-mixing, soft masks, moments, and a re-render from them.

Every step is differentiable in the pixels. Objects are rows of one (clip, colour) each; frames are judged one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from vidalign.worlds.video.constants import BACKGROUND, COLOURS, EXTENT, PALETTE, SHAPES, SIZES

FLOOR_SCORE = 0.02
"""Smallest value of an attribute within a geometric mean, so that one failure leaves the others visible."""
GATE = (0.08, 0.15)
"""Coverage below which a pixel is ground, and the width of the soft step."""
HARMONIC = {"circle": 0.0, "square": -4 * math.pi**2 / 240, "diamond": 4 * math.pi**2 / 240}
"""``E[x^4 + y^4 - 6 x^2 y^2] / r^4`` over a shape; harmonic: an isotropic blur leaves it."""
SMALL_AREA = math.pi * SIZES["small"] ** 2


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


def unmix(clips: torch.Tensor) -> torch.Tensor:
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


def measure(masks: torch.Tensor) -> Objects:
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


def nearness(clips: torch.Tensor, objects: Objects, rows: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
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


def drawn_colours(total: torch.Tensor) -> torch.Tensor:
    """Which colours a clip shows, ``[B, colours]``: at most two; total: their areas in every frame."""
    brightest = total.mean(1).topk(2, 1)
    enough = total.amax(1).gather(1, brightest.indices) > 0.3 * SMALL_AREA
    return torch.zeros_like(total[:, 0], dtype=torch.bool).scatter(1, brightest.indices, enough)


def pool(values: torch.Tensor) -> torch.Tensor:
    """Power mean of order -4 over frames, ``[B, F]`` -> ``[B]``: near the worst frame, yet climbable."""
    return values.clamp(min=FLOOR_SCORE).pow(-4).mean(1).pow(-0.25) * (values.amax(1) > 0)


@dataclass
class Gaze:
    """What B clips show: total, the area of every colour ``[B, F, colours]``; captioned, the objects of the two colours
    that are looked for, ``[B, F, 2]``; visual, the quality of every frame ``[B, F]``, see `nearness`."""

    total: torch.Tensor
    captioned: Objects
    visual: torch.Tensor


def gaze(clips: torch.Tensor, colours: torch.Tensor) -> Gaze:
    """Measure clips ``[B, F, 3, H, W]`` in [0, 1] where the palette colours ``[B, 2]`` are looked for."""
    batch, frames, _, height, width = clips.shape
    cover = unmix(clips)
    total = cover.sum(-1)
    rows = torch.arange(batch, device=clips.device)[:, None]
    with torch.no_grad():
        drawn = drawn_colours(total)
        needed = drawn.clone()
        needed[rows, colours] = True
        clip, colour = needed.nonzero().unbind(1)
        place = torch.full_like(needed, -1, dtype=torch.long)
        place[clip, colour] = torch.arange(len(clip), device=clips.device)
        render = place[drawn]
    objects = measure(cover.transpose(1, 2)[clip, colour].view(-1, frames, height, width))
    slots = place[rows, colours]  # [B, 2]
    captioned = Objects(*(getattr(objects, f.name)[slots].transpose(1, 2) for f in fields(Objects)))
    shown = Objects(*(getattr(objects, f.name)[render] for f in fields(Objects)))
    return Gaze(total, captioned, nearness(clips, shown, (clip[render], colour[render])))


def appearance(pictures: torch.Tensor) -> torch.Tensor:
    """Visual quality ``[N]`` in [0, 1] of pictures ``[N, 3, H, W]`` in [0, 1], each by itself and without a caption."""
    cover = unmix(pictures[:, None])
    with torch.no_grad():
        picture, colour = drawn_colours(cover.sum(-1)).nonzero().unbind(1)
    masks = cover.transpose(1, 2)[picture, colour].unflatten(-1, pictures.shape[-2:])
    return nearness(pictures[:, None], measure(masks), (picture, colour))[:, 0]
