"""Finite-difference judgement of motion and physics, for the auditor alone.

`motion_score` asks whether a track does what the caption says (how far, which way, does it stop, does it rebound).
`physics_score` takes positions and finite-difference velocities at one time and steps the law forward by brute force.
It compares with what the clip shows two frames later. Nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidalign.worlds.video.constants import FLOOR, GRAVITY, RESTITUTION

LAG = 2
"""Frames between the state that is stepped forward and the frame it is compared with."""
SUBSTEPS = 8
"""Time steps per frame of the forward stepping; contacts are resolved within a step."""
CONTACT_PASSES = 3
"""Passes that carry stepped velocities past contacts; each reaches one contact further."""


@dataclass
class Tracks:
    """Tracks of n clips of one motion: `xy` ``[n, F, 2, 2]`` pixels, `extents` ``[n, 2]`` half widths."""

    xy: torch.Tensor
    extents: torch.Tensor

    @property
    def frames(self) -> int:
        return self.xy.shape[1]

    @property
    def height(self) -> torch.Tensor:
        """Height of the first object above the floor, ``[n, F]``."""
        return FLOOR - self.extents[:, :1] - self.xy[:, :, 0, 1]


def ramp(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """0 at `low`, 1 at `high`, linear in between."""
    return ((value - low) / (high - low)).clamp(0, 1)


def spread(values: torch.Tensor) -> torch.Tensor:
    """Largest distance from the median over time, ``[n, F]`` -> ``[n]``."""
    return (values - values.median(1, keepdim=True).values).abs().amax(1)


def motion_score(motion: str, tracks: Tracks) -> torch.Tensor:
    """How far the tracks do what `motion` says, ``[n]`` in [0, 1]: the product of its soft conditions."""
    family, _, direction = motion.partition(" ")
    sign = -1.0 if direction in ("left", "up") else 1.0
    if family == "still":
        drift = (tracks.xy[:, :, 0] - tracks.xy[:, :, 0].median(1, keepdim=True).values).norm(dim=-1).amax(1)
        return 1 - ramp(drift, 0.5, 2.5)
    if family == "glide":
        return _glides(tracks, sign, 0 if direction in ("left", "right") else 1)
    if family == "fall":
        return _falls(tracks)
    if family == "bounce":
        return _bounces(tracks)
    return _thrown(tracks, sign) if family == "throw" else _hits(tracks, sign)


def _glides(tracks: Tracks, sign: float, axis: int) -> torch.Tensor:
    along, across = sign * tracks.xy[:, :, 0, axis], tracks.xy[:, :, 0, 1 - axis]
    required = min(7.4, 0.67 * (tracks.frames - 1))
    steps = along[:, 1:] - along[:, :-1]
    steady = ramp(steps * (tracks.frames - 1) / required, 0.0, 0.8).mean(1)
    return ramp(along[:, -1] - along[:, 0], 0.25 * required, required) * (1 - ramp(spread(across), 0.5, 3.0)) * steady


def _falls(tracks: Tracks) -> torch.Tensor:
    height = tracks.height
    required = min(9.5, 0.24 * (tracks.frames - 1) ** 2)
    drop = ramp(height[:, 0] - height[:, -1], 0.25 * required, required)
    rise = (height[:, 1:] - height[:, :-1]).amax(1)
    rests = 1 - ramp(height[:, -1].abs(), 0.6, 4.0) if tracks.frames >= 12 else 1.0
    return drop * (1 - ramp(rise, 0.3, 2.0)) * (1 - ramp(spread(tracks.xy[:, :, 0, 0]), 0.5, 3.0)) * rests


def _bounces(tracks: Tracks) -> torch.Tensor:
    height, times = tracks.height, torch.arange(tracks.frames, device=tracks.xy.device)
    start = height[:, 0].clamp(min=0.1)
    impact = (2 * start / GRAVITY).sqrt()
    before = times <= impact[:, None].ceil()
    lowest = torch.where(before, height, start[:, None]).amin(1)
    after = torch.where(times >= impact[:, None], height, lowest[:, None]).amax(1)
    left = (tracks.frames - 1 - impact).clamp(min=0.0)
    speed = RESTITUTION * (2 * GRAVITY * start).sqrt()
    left = torch.minimum(left, speed / GRAVITY)
    rebound = (speed * left - 0.5 * GRAVITY * left**2).clamp(min=0.0)
    rises = torch.where(rebound < 1, 1.0, ramp(after / rebound.clamp(min=1), 0.25, 0.85))
    fallen = torch.where(left > 0, ramp((start - lowest) / start, 0.2, 0.6), 1.0)
    early = (height[:, 1:] - height[:, :-1]) * (times[1:] < impact[:, None])
    high = ramp(height[:, 0], 2.0, 4.3) * (1 - ramp(early.amax(1), 0.3, 2.0))
    return high * fallen * rises * (1 - ramp(spread(tracks.xy[:, :, 0, 0]), 0.5, 3.0))


def _thrown(tracks: Tracks, sign: float) -> torch.Tensor:
    along, height = sign * tracks.xy[:, :, 0, 0], tracks.height
    span = tracks.frames - 1
    apex = height.amax(1)
    rise = min(2.3, 1.5 * span - 0.25 * span**2) if span < 4 else 2.3
    drop = 4.5 if span >= 11 else 0.0
    far = ramp(along[:, -1] - along[:, 0], 0.0, min(4.2, 0.55 * span))
    falls = ramp(apex - height[:, -1], 0.2 * drop, drop) if drop else 1.0
    return far * ramp(apex - height[:, 0], 0.2 * rise, rise) * falls


def _hits(tracks: Tracks, sign: float) -> torch.Tensor:
    x = sign * tracks.xy[..., 0]
    first, second = x[..., 0], x[..., 1]
    span = tracks.frames - 1
    gap = second - first - tracks.extents.sum(1, keepdim=True)
    scale = min(1.0, span / 11)
    approach = ramp(first.amax(1) - first[:, 0], 0.4 * scale, 1.7 * scale) * ramp(gap[:, 0], 0.2, 1.6 * scale)
    pushed = ramp(second[:, -1] - second[:, 0], 0.8 * scale, 3.2 * scale)
    touch = 1 - ramp(gap.amin(1).abs(), 1.0, 3.5)
    contact = gap.argmin(1, keepdim=True)
    times = torch.arange(tracks.frames, device=x.device)
    early = ((second - second[:, :1]).abs() * (times < contact)).amax(1)
    late = ((first - first[:, -1:]).abs() * (times > contact)).amax(1)
    level = (tracks.xy[..., 1] - tracks.xy[..., 1].mean((1, 2), keepdim=True)).abs().amax((1, 2))
    return (
        approach * pushed * touch * (1 - ramp(early, 0.7, 3.0)) * (1 - ramp(late, 0.7, 3.0)) * (1 - ramp(level, 0.5, 3))
    )


def _forward(
    motion: str, position: torch.Tensor, velocity: torch.Tensor, extents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step `LAG` frames: position, velocity ``[n, T, 2, 2]`` -> both afterwards and the contacts."""
    family = motion.partition(" ")[0]
    gravity = GRAVITY if family in ("fall", "bounce", "throw") else 0.0
    floor = (FLOOR - extents[:, 0])[:, None]
    gap = extents.sum(1)[:, None]
    sign = -1.0 if motion.endswith("left") else 1.0
    touched = torch.zeros(position.shape[:2], dtype=torch.bool, device=position.device)
    dt = 1.0 / SUBSTEPS
    x, v = position.clone(), velocity.clone()
    for _ in range(LAG * SUBSTEPS):
        x = x + v * dt
        if gravity:
            x[..., 0, 1] += 0.5 * gravity * dt * dt
            v[..., 0, 1] += gravity * dt
            deep = x[..., 0, 1] - floor
            hit = (deep > 0) & (v[..., 0, 1] > 0)
            touched |= hit
            if family == "bounce":
                x[..., 0, 1] = torch.where(hit, floor - RESTITUTION * deep, x[..., 0, 1])
                v[..., 0, 1] = torch.where(hit, -RESTITUTION * v[..., 0, 1], v[..., 0, 1])
            else:
                x[..., 0, 1] = torch.where(hit, floor.expand_as(deep), x[..., 0, 1])
                v[..., 0, :] = torch.where(hit[..., None], 0.0, v[..., 0, :])
        elif family == "hit":
            overlap = gap - sign * (x[..., 1, 0] - x[..., 0, 0])
            closing = sign * (v[..., 0, 0] - v[..., 1, 0])
            hit = (overlap > 0) & (closing > 0.05)
            touched |= hit
            swapped = v.flip(-2)
            x[..., 0] = torch.where(
                hit[..., None], x[..., 0] + sign * overlap[..., None] * x.new_tensor(_SHARES), x[..., 0]
            )
            v[..., 0] = torch.where(hit[..., None], swapped[..., 0], v[..., 0])
    return x, v, touched


_SHARES = (-0.5, 0.5)


def _velocities(family: str, tracks: Tracks) -> torch.Tensor:
    """Velocity at every frame from the frames before it, ``[n, F, 2, 2]``; drops begin at rest."""
    xy = tracks.xy
    gravity = GRAVITY if family in ("fall", "bounce", "throw") else 0.0
    if family == "still":
        return torch.zeros_like(xy)
    first = xy[:, 1:2] - xy[:, :1] if family not in ("fall", "bounce") else torch.zeros_like(xy[:, :1])
    velocity = torch.cat((first, first, (xy[:, LAG:] - xy[:, :-LAG]) / LAG), 1)
    lead = torch.tensor([0.0, 1.0] if family in ("fall", "bounce") else [-0.5, 0.5], device=xy.device)
    velocity[:, :LAG, 0, 1] += gravity * lead
    velocity[:, LAG:, 0, 1] += 0.5 * LAG * gravity * (tracks.height[:, LAG:] > 0.3)
    return velocity


def physics_score(motion: str, tracks: Tracks, visible: torch.Tensor) -> torch.Tensor:
    """How well each later frame follows from the earlier ones, ``[n]`` in [0, 1].

    A state that follows a contact takes the stepped velocity, since a finite difference across a contact
    means nothing. Frames are pooled as the mean of their mean and their worst quarter. visible: ``[n, F]``.
    """
    family = motion.partition(" ")[0]
    xy, extents = tracks.xy, tracks.extents
    if tracks.frames <= LAG:
        return visible.to(xy).mean(1)
    state, measured = xy[:, :-LAG], _velocities(family, tracks)[:, :-LAG]
    ahead, after, touched = _forward(motion, state, measured, extents)
    for _ in range(CONTACT_PASSES if family in ("bounce", "hit") else 0):
        carried = measured.clone()
        carried[:, LAG:] = torch.where(touched[:, :-LAG, None, None], after[:, :-LAG], measured[:, LAG:])
        ahead, after, touched = _forward(motion, state, carried, extents)
    objects = 2 if family == "hit" else 1
    error = (ahead - xy[:, LAG:])[..., :objects, :].norm(dim=-1).amax(-1)
    return pool(1 / (1 + ((error - 0.25).clamp(min=0) / 0.8) ** 2)) * visible.to(xy).mean(1)


def pool(values: torch.Tensor) -> torch.Tensor:
    """Mean of the mean and of the worst quarter of frames, ``[n, F]`` -> ``[n]``."""
    worst = values.sort(1).values[:, : max(values.shape[1] // 4, 1)]
    return (values.mean(1) + worst.mean(1)) / 2
