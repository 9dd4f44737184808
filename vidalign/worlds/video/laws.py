"""Least-squares fits of the world's laws of motion to measured tracks, for the scorer alone.

Every law is fitted within the initial states of the world (a glide that does not glide, or a hit without an approach,
is no fit). Laws linear in their unknowns are solved in closed form. The others are solved by a table of their one or
two remaining unknowns, refined by a Gauss-Newton step. Tracks are pixels, y down; times are frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from vidalign.worlds.video.constants import FLOOR, FRAMES, GRAVITY, MARGIN, MOTIONS, RESTITUTION, SIZE

LAWS = tuple(MOTIONS)
SLOWEST, FASTEST = 0.68, 2.0
"""Speeds of a glide in a clip of 12 frames; longer clips may be slower in proportion."""
FALL, BOUNCE, DROP = (9.8, 27.0), (4.8, 14.2), (2.8, 12.2)
LIFT, DRIFT = (1.55, 2.45), (0.57, 1.13)
CONTACT = (0.23, 0.57)
"""Heights of falls, bounces and throws, speeds of a throw, share of the clip before a collision."""


@dataclass
class Tables:
    """Candidate flights ``[G, F]`` (heights), parameters of throws ``[G, 2]``, contact times ``[T]``."""

    times: torch.Tensor
    fall: torch.Tensor
    bounce: torch.Tensor
    throw: torch.Tensor
    throws: torch.Tensor
    contacts: torch.Tensor


def _bounces(heights: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Height above the floor after drops from `heights` ``[G, 1]``: a geometric series of flights."""
    first = (2 * heights / GRAVITY).sqrt()
    above = heights - 0.5 * GRAVITY * times**2
    start = first
    for n in range(1, 16):
        flight = 2 * first * RESTITUTION**n
        local = times - start
        above = torch.where(local >= 0, 0.5 * GRAVITY * local * (flight - local), above)
        start = start + flight
    return above.clamp(min=0.0)


def thrown(height: torch.Tensor, lift: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Height above the floor of a throw and the time of its flight: ``[..., 1]`` each -> two ``[..., F]``."""
    landing = (lift + (lift**2 + 2 * GRAVITY * height).sqrt()) / GRAVITY
    above = (height + lift * times - 0.5 * GRAVITY * times**2) * (times < landing)
    return above, torch.minimum(times, landing)


@lru_cache(maxsize=8)
def tables(frames: int, device: torch.device) -> Tables:
    """Candidate trajectories of a clip length, computed once for a device."""
    times = torch.arange(frames, dtype=torch.float64)
    heights = torch.linspace(*FALL, 96, dtype=torch.float64)[:, None]
    drops = torch.linspace(*BOUNCE, 96, dtype=torch.float64)[:, None]
    throws = torch.cartesian_prod(
        torch.linspace(*DROP, 25, dtype=torch.float64), torch.linspace(*LIFT, 19, dtype=torch.float64)
    )
    tensors = (
        times,
        (heights - 0.5 * GRAVITY * times**2).clamp(min=0.0),
        _bounces(drops, times),
        thrown(throws[:, :1], throws[:, 1:], times)[0],
        throws,
        torch.linspace(*CONTACT, 64, dtype=torch.float64) * (frames - 1),
    )
    return Tables(*(each.to(device) for each in tensors))


def _nearest(observed: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Index of the table row nearest to each row of `observed` ``[B, F]``."""
    return (table.square().sum(-1) - 2 * observed @ table.T).argmin(-1)


def _refined(observed: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The best flight between neighbouring table rows, ``[B, F]``."""
    index = _nearest(observed, table)
    last = len(table) - 1
    low, here = table[(index - 1).clamp(min=0)], table[index]
    direction = table[(index + 1).clamp(max=last)] - low
    step = ((observed - here) * direction).sum(-1) / direction.square().sum(-1).clamp(min=1e-9)
    return here + step.clamp(-0.5, 0.5)[:, None] * direction


def _line(values: torch.Tensor, basis: torch.Tensor, low: float, high: float, sign: int) -> torch.Tensor:
    """Least-squares ``offset + sign * speed * basis`` over the last dimension, speed in [low, high]."""
    centred = basis - basis.mean(-1, keepdim=True)
    slope = (values * centred).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True).clamp(min=1e-9)
    slope = sign * (sign * slope).clamp(low, high)
    return values.mean(-1, keepdim=True) + slope * centred


def _fit_throw(x: torch.Tensor, above: torch.Tensor, table: Tables, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x ``[B, F]`` and height above the floor of the best throw in direction `sign`."""
    height, lift = table.throws[_nearest(above, table.throw)].unbind(-1)
    for _ in range(2):
        guess, flight = thrown(height[:, None], lift[:, None], table.times)
        moving = (flight == table.times).to(x)
        along = flight * moving
        error = (above - guess) * moving
        n, s, ss = moving.sum(-1), along.sum(-1), along.square().sum(-1)
        e, es = error.sum(-1), (error * along).sum(-1)
        det = (n * ss - s * s).clamp(min=1e-3)
        height = (height + ((ss * e - s * es) / det).clamp(-0.4, 0.4)).clamp(*DROP)
        lift = (lift + ((n * es - s * e) / det).clamp(-0.06, 0.06)).clamp(*LIFT)
    fitted, flight = thrown(height[:, None], lift[:, None], table.times)
    return _line(x, flight, *DRIFT, sign), fitted


def _fit_hit(x: torch.Tensor, gap: torch.Tensor, table: Tables, speeds: tuple[float, float], sign: int) -> torch.Tensor:
    """x ``[B, F, 2]`` of both objects of the best elastic collision of equal masses in direction `sign`."""
    before = torch.minimum(table.times, table.contacts[:, None])
    after = torch.maximum(table.times, table.contacts[:, None])
    basis = torch.cat((before, after), -1)  # [T, 2F]
    shifted = torch.cat((x[..., 0], x[..., 1] - sign * gap[:, None]), -1)  # [B, 2F]
    fitted = _line(shifted[:, None], basis, *speeds, sign)  # [B, T, 2F]
    best = (shifted[:, None] - fitted).square().sum(-1).argmin(-1)
    first, second = fitted[torch.arange(len(x), device=x.device), best].chunk(2, -1)
    return torch.stack((first, second + sign * gap[:, None]), -1)


def fit(track: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
    """The best trajectory under every law.

    track: ``[B, F, 2, 2]`` centres (x, y) of two objects; extents: ``[B, 2]`` half widths, pixels.
    Returns ``[B, laws, F, 2, 2]`` in the order of `LAWS`; under a law of one object the second is at rest.
    """
    with torch.no_grad():
        return _fit(track.double(), extents.double())


def _fit(track: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
    table = tables(track.shape[1], track.device)
    slowest = SLOWEST * min(1.0, (FRAMES - 1) / max(track.shape[1] - 1, 1))
    if track.shape[1] > FRAMES:
        slowest *= 0.9  # long clips of collisions are slower still: they lack the room
    speeds = (slowest, FASTEST)
    rest = track.mean(1, keepdim=True).expand_as(track)
    floor = (FLOOR - extents[:, 0]).clamp(max=SIZE - MARGIN)[:, None]
    x, y = track[:, :, 0, 0], track[:, :, 0, 1]
    out = []
    for law in LAWS:
        family, _, direction = law.partition(" ")
        sign = -1 if direction in ("left", "up") else 1
        fitted = rest.clone()
        if family == "glide":
            axis = 0 if direction in ("left", "right") else 1
            fitted[:, :, 0, axis] = _line(track[:, :, 0, axis], table.times, *speeds, sign)
        elif family in ("fall", "bounce"):
            fitted[:, :, 0, 1] = floor - _refined(floor - y, table.fall if family == "fall" else table.bounce)
        elif family == "throw":
            along, above = _fit_throw(x, floor - y, table, sign)
            fitted[:, :, 0] = torch.stack((along, floor - above), -1)
        elif family == "hit":
            fitted[..., 0] = _fit_hit(track[..., 0], extents.sum(-1), table, speeds, sign)
            fitted[..., 1] = track[..., 1].mean((1, 2))[:, None, None]
        out.append(fitted)
    return torch.stack(out, 1)
