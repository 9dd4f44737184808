"""Finite-difference judgement of motion, physics and events, for the auditor alone.

`physics` takes the state two frames ago, from finite differences and medians over the clip, steps each future that the
law allows forward by brute force, and compares the best of them with what the clip shows. Nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidalign.worlds.events.constants import (
    AMPLITUDE,
    CROSSING,
    FLOOR,
    GAPS,
    GRAVITY,
    HEIGHT,
    MARGIN,
    PERIOD,
    PROBABILITY,
    SIZE,
    SPEEDS,
)
from vidalign.worlds.video.kinematics import pool, ramp, spread

SUBSTEPS = 8
"""Time steps a frame of a ball that is stepped forward."""


@dataclass
class Tracks:
    """Tracks of n clips of one family: `xy` ``[n, F, 2, 2]`` pixels, half widths `extents` ``[n, 2]``, `there` ``[n,
    F]`` frames that show the second object; `along`, the axis of motion, and `sign` of a glide."""

    xy: torch.Tensor
    extents: torch.Tensor
    there: torch.Tensor
    along: int
    sign: float

    def walls(self, which: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and greatest coordinates ``[n, 2]`` (x, y) of an object."""
        reach = self.extents[:, which]
        low = (MARGIN + reach)[:, None].expand(-1, 2)
        return low, torch.stack((SIZE - MARGIN - reach, FLOOR - reach), 1)


def motion_score(motion: str, turns: bool, tracks: Tracks) -> torch.Tensor:
    """How far the first object moves as its caption says, ``[n]`` in [0, 1]: the product of soft conditions."""
    family = motion.partition(" ")[0]
    along, across = tracks.xy[:, :, 0, tracks.along], tracks.xy[:, :, 0, 1 - tracks.along]
    if family == "glide":
        begins = ramp(tracks.sign * (along[:, 1] - along[:, 0]), 0.1, 0.6)
        steps = tracks.xy[:, :, 0].diff(dim=1).abs()
        pace = steps.amax(-1).median(1).values
        moves = ramp(pace, 0.3, 0.9 * SPEEDS["train"][0]) * (1 - ramp(pace, 1.2 * SPEEDS["held_out"][1], 3.0))
        straight = 1 - ramp(steps.amin(-1), 0.25, 1.0).mean(1) if turns else 1 - ramp(spread(across), 0.5, 3.0)
        return begins * moves * straight
    span = tracks.xy.shape[1] - 1
    travelled = along.amax(1) - along.amin(1)
    share = min(1.0, span / 11)
    required = 0.9 * (HEIGHT[0] if family == "bounce" else AMPLITUDE[0]) * share
    allowed = HEIGHT[1] if family == "bounce" else 2 * AMPLITUDE[1]
    far = ramp(travelled, 0.25 * required, required) * (1 - ramp(travelled, 1.1 * allowed, 1.5 * allowed))
    level = 1 - ramp(spread(across), 0.5, 3.0)
    if family == "swing":
        steps = along.diff(dim=1).abs()
        slows = 1 - ramp(steps.amin(1) / steps.amax(1).clamp(min=1e-6), 0.4, 0.7) if share == 1 else 1.0
        return far * level * slows
    height = FLOOR - tracks.extents[:, :1] - along
    return far * level * (1 - ramp(height.amin(1), 7.5 / share, 12.0 / share)) * (1 - ramp(-height.amin(1), 0.5, 2.0))


def _folded(place: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Coordinates that left the room by less than its width, reflected back into it."""
    return torch.where(place < low, 2 * low - place, torch.where(place > high, 2 * high - place, place))


def glide_error(tracks: Tracks, turns: bool) -> torch.Tensor:
    """Error ``[n, F - 2]`` of the best glide over two frames that the law allows, a turn on the middle one included."""
    xy = tracks.xy[:, :, 0]
    low, high = (edge[:, None] for edge in tracks.walls(0))
    pace = xy.diff(dim=1).abs().amax(-1).median(1).values[:, None, None]
    axes = (0, 1) if turns else (tracks.along,)
    units = [sign * torch.eye(2, device=xy.device, dtype=xy.dtype)[axis] for axis in axes for sign in (-1.0, 1.0)]
    error = torch.full_like(xy[:, 2:, 0], torch.inf)
    for unit in units:
        middle = _folded(xy[:, :-2] + pace * unit, low, high)
        ends = [_folded(_folded(xy[:, :-2] + 2 * pace * unit, low, high), low, high)]
        if turns:
            ends += [_folded(middle + pace * other, low, high) for other in units if not float(other @ unit)]
        off = (middle - xy[:, 1:-1]).norm(dim=-1)
        for end in ends:
            error = torch.minimum(error, torch.maximum(off, (end - xy[:, 2:]).norm(dim=-1)))
    return error


def bounce_error(tracks: Tracks) -> torch.Tensor:
    """Error ``[n, F - 2]`` of a ball stepped forward for two frames, up or down, with the speed of its energy."""
    floor = FLOOR - tracks.extents[:, :1]
    height = floor - tracks.xy[:, :, 0, 1]
    fall = height[:, 2:] - 2 * height[:, 1:-1] + height[:, :-2]
    flies = (fall + GRAVITY).abs() < 0.25
    energy = height[:, 1:-1] + (height[:, 2:] - height[:, :-2]).square() / (8 * GRAVITY)
    top = energy.where(flies, torch.nan).nanmedian(1).values.nan_to_num(HEIGHT[1])[:, None]
    speed = (2 * GRAVITY * (top - height[:, :-2]).clamp(min=0)).sqrt()
    error = torch.full_like(speed, torch.inf)
    for sign in (-1.0, 1.0):
        place, rate, off = height[:, :-2].clone(), sign * speed, torch.zeros_like(speed)
        for k in (1, 2):
            for _ in range(SUBSTEPS):
                place = place + rate / SUBSTEPS - 0.5 * GRAVITY / SUBSTEPS**2
                rate = rate - GRAVITY / SUBSTEPS
                under = (place < 0) & (rate < 0)
                place, rate = torch.where(under, -place, place), torch.where(under, -rate, rate)
            off = torch.maximum(off, (place - height[:, k : height.shape[1] - 2 + k]).abs())
        error = torch.minimum(error, off)
    level = tracks.xy[:, :, 0, 0]
    return error + 0.5 * (level - level.median(1, keepdim=True).values).abs()[:, 2:]


def swing_error(tracks: Tracks) -> torch.Tensor:
    """Error ``[n, F - 2]`` of a swing one frame ahead: second differences pull towards one centre with one strength."""
    x, y = tracks.xy[:, :, 0].unbind(-1)
    pull = x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]
    apart = x[:, 1:-1, None] - x[:, None, 1:-1]
    slopes = (-(pull[:, :, None] - pull[:, None, :]) / apart).where(apart.abs() > 1, torch.nan).flatten(1)
    low, high = (2 - 2 * torch.cos(torch.tensor(2 * torch.pi / period)).item() for period in reversed(PERIOD))
    strength = slopes.nanmedian(1).values.nan_to_num(high).clamp(0.8 * low, 1.2 * high)[:, None]
    centre = (x[:, 1:-1] + pull / strength).median(1, keepdim=True).values
    ahead = 2 * x[:, 1:-1] - x[:, :-2] - strength * (x[:, 1:-1] - centre)
    return (ahead - x[:, 2:]).abs() + 0.5 * (y - y.median(1, keepdim=True).values).abs()[:, 2:]


def crossing_error(tracks: Tracks) -> torch.Tensor:
    """Error ``[n, F]`` of the second object where it is seen: it appears at a side, keeps its pace, and leaves on the
    other side."""
    xy, there = tracks.xy[:, :, 1], tracks.there
    low, high = (edge[:, tracks.along, None] for edge in tracks.walls(1))
    along, across = xy[..., tracks.along], xy[..., 1 - tracks.along]
    both = there[:, 1:] & there[:, :-1]
    three = both[:, 1:] & both[:, :-1]
    step = along.diff(dim=1)
    pace = step.abs()
    slow = (CROSSING[0] - pace).clamp(min=0) + (pace - CROSSING[1]).clamp(min=0)
    error = torch.zeros_like(along)
    error[:, 1:] = (slow + across.diff(dim=1).abs()).where(both, 0.0)
    error[:, 2:] += step.diff(dim=1).abs().where(three, 0.0)
    appears = torch.nn.functional.pad(there[:, 1:] & ~there[:, :-1], (1, 0))
    error += torch.minimum((along - low).abs(), (along - high).abs()).where(appears, 0.0)
    leaves = there[:, :-1] & ~there[:, 1:]
    error[:, :-1] += (torch.minimum(along - low, high - along)[:, :-1] - CROSSING[1]).clamp(min=0).where(leaves, 0.0)
    return error.where(there, 0.0)


def physics_score(motion: str, turns: bool, tracks: Tracks, visible: torch.Tensor) -> torch.Tensor:
    """How well each frame follows from the ones before it, ``[n]`` in [0, 1]; visible: ``[n, F]``."""
    if tracks.xy.shape[1] < 3:
        return visible.to(tracks.xy).mean(1)
    family = motion.partition(" ")[0]
    errors = {"glide": lambda: glide_error(tracks, turns), "bounce": lambda: bounce_error(tracks)}
    error = errors.get(family, lambda: swing_error(tracks))()
    error = torch.maximum(error, crossing_error(tracks)[:, 2:])
    return pool(1 / (1 + ((error - 0.3).clamp(min=0) / 0.8) ** 2)) * visible.to(tracks.xy).mean(1)


def turned(tracks: Tracks) -> torch.Tensor:
    """Frames ``[n, F]`` on which the larger displacement changes its axis."""
    steps = tracks.xy[:, :, 0].diff(dim=1).abs()
    pace = steps.amax(-1).median(1, keepdim=True).values
    upright = steps[..., 1] > steps[..., 0]
    clear = (steps.amax(-1) > 0.4 * pace) & (steps.amin(-1) < 0.4 * pace)
    axis = torch.where(clear, torch.where(upright, 1, -1), 0)
    for k in range(1, axis.shape[1]):  # a step that a wall shortened keeps the axis of the one before
        axis[:, k] = torch.where(axis[:, k] == 0, axis[:, k - 1], axis[:, k])
    return torch.nn.functional.pad((axis[:, 1:] * axis[:, :-1]) < 0, (1, 1))


def event_score(events: torch.Tensor, fulfilled: torch.Tensor, several: bool) -> torch.Tensor:
    """1 where the second clause is `fulfilled` ``[n]`` and events ``[n, F]`` keep a likely rate, none within two frames
    of another; ``[n]`` in [0, 1].

    several: whether they can follow each other closely, so that too few are suspicious too.
    """
    frames, count = events.shape[1], events.sum(1).float()
    mean = frames * len(GAPS) / sum(GAPS) * PROBABILITY
    sd = (mean * (1 - PROBABILITY)) ** 0.5
    score = fulfilled.float() * (1 - ramp(count, mean + 2 * sd, mean + 4 * sd + 1))
    if several and mean > 2 * sd:
        score = score * ramp(count, mean - 3 * sd, mean - 2 * sd)
    near = sum((events[:, gap:] & events[:, :-gap]).sum(1) for gap in range(1, GAPS[0]))
    return score / (1 + near)
