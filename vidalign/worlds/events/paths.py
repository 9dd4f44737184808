"""Fits of glides that walls reflect and events turn, for the scorer alone.

The direction of every step is decoded first (Viterbi over left, right, up and down, in which a turn has its price and
a reflection is free, but at a wall only). Given the turns, a glide has three unknowns: where it begins and its speed.
They are found by Gauss-Newton on the exact motion, reflections included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidalign.worlds.events.constants import FLOOR, MARGIN, SIZE, SPEEDS

TURN_PRICE = 0.4
"""Squared pixels that a turn must save."""
FORBIDDEN = 1e6
SLOWEST, FASTEST = 0.95 * SPEEDS["train"][0], 1.05 * SPEEDS["held_out"][1]
ROUNDS = 5
"""Gauss-Newton steps."""
AXES, SIGNS = (0, 0, 1, 1), (-1.0, 1.0, -1.0, 1.0)
"""Axis and sign of the directions left, right, up and down."""


@dataclass
class Path:
    """The discrete part of N glides of F frames: `direction` ``[N, F - 1]`` of every step; `turn` ``[N, F - 1]``,
    whether the object turns on the frame before it."""

    direction: torch.Tensor
    turn: torch.Tensor


def room(extent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest coordinates ``[N, 2]`` (x, y) of objects with half widths ``[N]``."""
    low = (MARGIN + extent)[:, None].expand(-1, 2)
    return low, torch.stack((SIZE - MARGIN - extent, FLOOR - extent), 1)


def speed_of(track: torch.Tensor) -> torch.Tensor:
    """A first guess of the speed ``[N]`` of tracks ``[N, F, 2]``: the median of the larger displacements."""
    return track.diff(dim=1).abs().amax(-1).median(1).values.clamp(SLOWEST, FASTEST)


def decode(track: torch.Tensor, extent: torch.Tensor, start: torch.Tensor, turns: torch.Tensor) -> Path:
    """The likeliest directions of glides.

    track: ``[N, F, 2]``; extent: ``[N]`` half widths; start: ``[N]`` direction of the first step; turns: ``[N]``
    whether the object may turn.
    """
    speed = speed_of(track)
    cost, wall = _step_costs(track, extent, speed)
    axis = torch.tensor(AXES, device=track.device)
    turning = axis[:, None] != axis
    same = torch.eye(4, dtype=torch.bool, device=track.device)
    price = torch.where(turns[:, None, None], TURN_PRICE, FORBIDDEN) * turning  # [N, from, to]
    total = torch.where(torch.arange(4, device=track.device) == start[:, None], cost[:, 0], FORBIDDEN)
    before = []
    for k in range(1, cost.shape[1]):
        back = torch.where(wall[:, k - 1], 0.0, FORBIDDEN)[:, :, None] * (~turning & ~same)
        least = (total[:, :, None] + price + back).min(1)
        before.append(least.indices)
        total = least.values + cost[:, k]
    state = total.argmin(1)
    states = [state]
    for index in reversed(before):
        state = index.gather(1, state[:, None])[:, 0]
        states.append(state)
    direction = torch.stack(states[::-1], 1)
    turn = torch.zeros_like(direction, dtype=torch.bool)
    turn[:, 1:] = axis[direction[:, 1:]] != axis[direction[:, :-1]]
    return Path(direction, turn)


def _step_costs(track: torch.Tensor, extent: torch.Tensor, speed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each direction costs in every step, ``[N, F - 1, 4]`` squared pixels, and whether a wall reflects it."""
    axis, sign = torch.tensor(AXES, device=track.device), track.new_tensor(SIGNS)
    step, pace = track.diff(dim=1), speed[:, None, None]
    low, high = room(extent)
    along = sign * step[..., axis]
    aside = step[..., 1 - axis].square()
    before = track[:, :-1, axis]
    far = torch.where(sign > 0, high[:, None, axis] - before, before - low[:, None, axis])  # to the wall ahead
    expected = torch.minimum(pace, 2 * far.clamp(min=0) - pace)
    return aside + (along - expected).square(), far < pace + 0.3


def glide(
    path: Path, start: torch.Tensor, speed: torch.Tensor, extent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact tracks ``[N, F, 2]`` of glides and their derivatives ``[N, F, 2, 3]`` by x, y and speed.

    start: ``[N, 2]``; speed, extent: ``[N]``.
    """
    axis, signs = torch.tensor(AXES, device=start.device), start.new_tensor(SIGNS)
    low, high = room(extent)
    place, slope = start, torch.eye(3, device=start.device, dtype=start.dtype)[:2].expand(len(start), 2, 3)
    moving = torch.nn.functional.one_hot(axis[path.direction], 2).to(start)  # [N, F - 1, 2]
    sign = signs[path.direction[:, 0]]
    pace = start.new_tensor([0.0, 0.0, 1.0])
    places, slopes = [place], [slope]
    for k in range(path.direction.shape[1]):
        sign = torch.where(path.turn[:, k], signs[path.direction[:, k]], sign)
        go = moving[:, k] * sign[:, None]
        place, slope = place + go * speed[:, None], slope + go[:, :, None] * pace
        under, over = (place < low) & (moving[:, k] > 0), (place > high) & (moving[:, k] > 0)
        place = torch.where(under, 2 * low - place, torch.where(over, 2 * high - place, place))
        back = under | over
        slope = torch.where(back[..., None], -slope, slope)
        sign = torch.where(back.any(1), -sign, sign)
        places.append(place)
        slopes.append(slope)
    return torch.stack(places, 1), torch.stack(slopes, 1)


def fit(track: torch.Tensor, extent: torch.Tensor, path: Path) -> torch.Tensor:
    """The best glide ``[N, F, 2]`` along each path, in least squares; track ``[N, F, 2]``, extent ``[N]``."""
    low, high = room(extent)
    place, speed = track[:, 0].clamp(low, high), speed_of(track)
    best, least = track, track.new_full((len(track),), torch.inf)
    for _ in range(ROUNDS):
        fitted, slope = glide(path, place, speed, extent)
        left = track - fitted
        error = left.square().sum((1, 2))
        better = error < least
        best, least = torch.where(better[:, None, None], fitted, best), torch.where(better, error, least)
        flat = slope.flatten(1, 2)
        normal = flat.mT @ flat + 1e-6 * torch.eye(3, device=track.device, dtype=track.dtype)
        move = torch.linalg.solve(normal, flat.mT @ left.flatten(1)[..., None])[..., 0]
        place = (place + move[:, :2]).clamp(low, high)
        speed = (speed + move[:, 2]).clamp(SLOWEST, FASTEST)
    return best
