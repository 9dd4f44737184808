"""Least-squares fits of bounces, swings and crossings to measured tracks, for the scorer alone; glides: `paths.py`.

Tracks are pixels, y down; times are frames. All fits are exact motions of the world at some phase.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from vidalign.worlds.events.constants import AMPLITUDE, CROSSING, FLOOR, GRAVITY, HEIGHT, MARGIN, PERIOD, SIZE

SLACK = 0.05
"""Share by which fitted quantities may leave the ranges of the world."""
SPEED = ((2 * GRAVITY * HEIGHT[0] * (1 - SLACK)) ** 0.5, (2 * GRAVITY * HEIGHT[1] * (1 + SLACK)) ** 0.5)
"""Speed at which a ball leaves the floor."""
WIDTH = (AMPLITUDE[0] * (1 - SLACK), AMPLITUDE[1] * (1 + SLACK))
FREQUENCY = (2 * torch.pi / (PERIOD[1] * (1 + SLACK)), 2 * torch.pi / (PERIOD[0] * (1 - SLACK)))
PACE = (CROSSING[0] * (1 - SLACK), CROSSING[1] * (1 + SLACK))
ROUNDS = 4
"""Gauss-Newton steps of a bounce."""


def _height(speed: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Height of a ball that left the floor with `speed` at time 0, and its derivatives by speed and time."""
    period = 2 * speed / GRAVITY
    count = (time / period).floor()
    local = time - count * period
    rate = speed - GRAVITY * local
    return speed * local - 0.5 * GRAVITY * local.square(), local - rate * count * 2 / GRAVITY, rate


@lru_cache(maxsize=16)
def _bounces(frames: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Heights ``[G, F]`` of candidate bounces, and their speed and phase in frames ``[G, 2]``."""
    speed = torch.linspace(*SPEED, 24, dtype=torch.float64, device=device)
    share = torch.arange(32, dtype=torch.float64, device=device) / 32
    both = torch.cartesian_prod(speed, share)
    phase = both[:, 1] * 2 * both[:, 0] / GRAVITY
    times = torch.arange(frames, dtype=torch.float64, device=device)
    return _height(both[:, :1], phase[:, None] + times)[0], torch.stack((both[:, 0], phase), 1)


def bounce(track: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """The best bounce ``[N, F, 2]`` in place; track ``[N, F, 2]``, extent ``[N]`` half widths."""
    floor = (FLOOR - extent)[:, None]
    above = floor - track[..., 1]
    table, settings = _bounces(track.shape[1], track.device)
    nearest = (table.square().sum(-1) - 2 * above @ table.T).argmin(-1)
    speed, phase = settings[nearest].unbind(-1)
    times = torch.arange(track.shape[1], dtype=track.dtype, device=track.device)
    best, least = table[nearest], (above - table[nearest]).square().sum(1)
    for _ in range(ROUNDS):
        fitted, by_speed, by_time = _height(speed[:, None], phase[:, None] + times)
        left = above - fitted
        better = left.square().sum(1) < least
        best = torch.where(better[:, None], fitted, best)
        least = torch.where(better, left.square().sum(1), least)
        slope = torch.stack((by_speed, by_time), -1)
        normal = slope.mT @ slope + 1e-3 * torch.eye(2, device=track.device, dtype=track.dtype)
        move = torch.linalg.solve(normal, slope.mT @ left[..., None])[..., 0].clamp(-0.3, 0.3)
        speed, phase = (speed + move[:, 0]).clamp(*SPEED), (phase + move[:, 1]).clamp(min=0.0)
    return torch.stack((track[..., 0].mean(1, keepdim=True).expand_as(best), floor - best), -1)


@lru_cache(maxsize=16)
def _swings(frames: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bases ``[G, F, 3]`` (1, sine, cosine) of candidate frequencies and their pseudo-inverses ``[G, 3, F]``."""
    frequency = torch.linspace(*FREQUENCY, 49, dtype=torch.float64, device=device)
    angle = frequency[:, None] * (torch.arange(frames, dtype=torch.float64, device=device) - (frames - 1) / 2)
    basis = torch.stack((torch.ones_like(angle), angle.sin(), angle.cos()), -1)
    return basis, torch.linalg.pinv(basis)


def swing(track: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """The best swing ``[N, F, 2]`` from left to right; arguments as for `bounce`."""
    basis, inverse = _swings(track.shape[1], track.device)
    weights = torch.einsum("gkf,nf->ngk", inverse, track[..., 0])
    width = weights[..., 1:].norm(dim=-1)
    turn = torch.where(width[..., None] > 1e-3, weights[..., 1:], weights.new_tensor([1.0, 0.0]))
    width, turn = width.clamp(*WIDTH), turn / turn.norm(dim=-1, keepdim=True)
    weights = torch.cat((weights[..., :1], turn * width[..., None]), -1)
    reach = torch.minimum(weights[..., 0] - MARGIN, SIZE - MARGIN - weights[..., 0]) - extent[:, None]
    fitted = torch.einsum("gfk,ngk->ngf", basis, weights)
    error = (track[:, None, :, 0] - fitted).square().mean(-1) + (width - reach - 0.5).clamp(min=0)
    best = fitted[torch.arange(len(track), device=track.device), error.argmin(1)]
    return torch.stack((best, track[..., 1].mean(1, keepdim=True).expand_as(best)), -1)


def crossing(
    track: torch.Tensor, there: torch.Tensor, along: torch.Tensor, extent: torch.Tensor, entered: torch.Tensor
) -> torch.Tensor:
    """The best crossings ``[N, F, 2]`` at constant speed beside the first object.

    track: ``[N, F, 2]``; there: ``[N, F]`` frames that show the object; along: ``[N]`` axis; extent: ``[N]``; entered:
    ``[N]`` whether it appears on the first of these frames, at a side then.
    """
    rows = torch.arange(len(track), device=track.device)
    path, across = track[rows, :, along], track[rows, :, 1 - along]
    weight = there.to(track)
    count = weight.sum(1).clamp(min=1)
    times = torch.arange(track.shape[1], dtype=track.dtype, device=track.device)
    first = (there.cumsum(1) == 0).sum(1).clamp(max=track.shape[1] - 1)
    middle, mean = ((weight * v).sum(1) / count for v in (times.expand_as(path), path))
    moved = (weight * (times - middle[:, None]) * path).sum(1)
    slope = moved / (weight * (times - middle[:, None]).square()).sum(1).clamp(min=1e-6)
    high = torch.where(along == 0, SIZE - MARGIN, FLOOR) - extent
    low = MARGIN + extent
    begin = path[rows, first]
    sign = torch.where(count > 1, slope.sign(), torch.where(begin < (low + high) / 2, 1.0, -1.0))
    side = torch.where(sign > 0, low, high)
    since = (times - first[:, None]) * weight
    from_side = (since * (path - side[:, None])).sum(1) / since.square().sum(1).clamp(min=1e-6)
    pace = sign * torch.where(entered, sign * from_side, sign * slope).clamp(*PACE)
    offset = torch.where(entered, side - pace * first, mean - pace * middle)
    line = offset[:, None] + pace[:, None] * times
    level = ((weight * across).sum(1) / count)[:, None].expand_as(line)
    return torch.where((along == 0)[:, None, None], torch.stack((line, level), -1), torch.stack((level, line), -1))
