"""Scenes of the video world: initial states drawn from a caption, closed-form trajectories.

Laws (constants in `constants.py`): still; glide at constant velocity; fall from rest, inelastic; bounce with
restitution .8; throw (ballistic, then it lies where it landed); elastic collision of equal masses. In that the first
object stops and the second goes on with its velocity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from vidalign.worlds.video.captions import parse
from vidalign.worlds.video.constants import (
    COLOURS,
    EXTENT,
    FLOOR,
    FRAMES,
    GRAVITY,
    MARGIN,
    RESTITUTION,
    SHAPES,
    SIZE,
    SIZES,
    SPEEDS,
)

MAX_OBJECTS = 2
DRAWS = {"still": 2, "glide": 3, "fall": 2, "bounce": 2, "throw": 4, "hit": 4}
"""Uniform numbers that a scene of each family takes from the generator, in the order of the captions."""


@dataclass
class Scenes:
    """A batch of B scenes of F frames with up to two objects each.

    position: ``[B, F, 2, 2]`` centre (x, y) of each object, pixels; radius: ``[B, 2]``; colour, shape: ``[B,
    2]`` indices into the constants; present: ``[B, 2]``, false where a scene has no second object.
    """

    position: torch.Tensor
    radius: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    present: torch.Tensor


def bounce_height(height: torch.Tensor | float, times: torch.Tensor) -> torch.Tensor:
    """Height above the floor of balls dropped from rest, restitution .8.

    height: ``[...]`` pixels at time 0; times: ``[F]`` -> ``[..., F]``.
    """
    start_height = torch.as_tensor(height, dtype=torch.float64)[..., None]
    start = (2 * start_height / GRAVITY).sqrt()
    speed = RESTITUTION * (2 * GRAVITY * start_height).sqrt()
    result = (start_height - 0.5 * GRAVITY * times**2).clamp(min=0.0) * (times < start)
    while bool(((speed > 0.02) & (start < times.max())).any()):
        flight = 2 * speed / GRAVITY
        local = times - start
        inside = (local >= 0) & (local < flight) & (speed > 0.02)
        result = torch.where(inside, speed * local - 0.5 * GRAVITY * local**2, result)
        start, speed = start + flight, speed * RESTITUTION
    return result


class _Integrator:
    """Draws the initial states of scenes of one motion and integrates them.

    Every method takes `u` ``[n, draws]`` uniform in [0, 1] and extents ``[n, 2]``. It returns positions ``[n, F, 2]``
    of the first object, `hit` those of both.
    """

    def __init__(self, frames: int, speeds: tuple[float, float]) -> None:
        self.times = torch.arange(frames, dtype=torch.float64)
        self.span = float(frames - 1)
        self.speeds = speeds

    def __call__(self, motion: str, u: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
        """Positions ``[n, F, 2, 2]``; the second object lies outside the picture when there is none."""
        family, _, direction = motion.partition(" ")
        if family == "hit":
            return self._hit(-1 if direction == "left" else 1, u, extents)
        extent = extents[:, 0]
        room = (MARGIN + extent, SIZE - MARGIN - extent, MARGIN + extent, FLOOR - extent)
        out = torch.full((len(u), len(self.times), MAX_OBJECTS, 2), -1e3, dtype=torch.float64)
        if family == "still":
            low, high, top, bottom = room
            point = torch.stack((_between(u[:, 0], low, high), _between(u[:, 1], top, bottom)), -1)
            out[:, :, 0] = point[:, None]
        elif family == "glide":
            out[:, :, 0] = self._glide(direction, u, *room)
        elif family == "throw":
            out[:, :, 0] = self._throw(-1 if direction == "left" else 1, u, *room)
        else:
            out[:, :, 0] = self._drop(family, u, *room)
        return out

    def speed(self, u: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        """A speed of the split's range with which an object crosses at most `room` pixels in the clip."""
        low, high = self.speeds
        fastest = (room / self.span).clamp(max=high)
        return _between(u, fastest.clamp(max=low), fastest)

    def _glide(
        self,
        direction: str,
        u: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        top: torch.Tensor,
        bottom: torch.Tensor,
    ) -> torch.Tensor:
        horizontal = direction in ("left", "right")
        sign = -1 if direction in ("left", "up") else 1
        start, end = (low, high) if horizontal else (top, bottom)
        speed = self.speed(u[:, 0], end - start)
        travelled = speed * self.span
        first = _between(u[:, 1], start, end - travelled)
        if sign < 0:
            first = _between(u[:, 1], start + travelled, end)
        along = first[:, None] + sign * speed[:, None] * self.times
        still = _between(u[:, 2], top, bottom) if horizontal else _between(u[:, 2], low, high)
        across = still[:, None].expand_as(along)
        return torch.stack((along, across) if horizontal else (across, along), -1)

    def _drop(
        self,
        family: str,
        u: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        top: torch.Tensor,
        bottom: torch.Tensor,
    ) -> torch.Tensor:
        x = _between(u[:, 0], low, high)
        if family == "fall":
            height = _between(u[:, 1], 10.0, bottom - top)
            above = (height[:, None] - 0.5 * GRAVITY * self.times**2).clamp(min=0.0)
        else:
            # first impact after 4.5 to 7.5 frames: every clip shows a rebound
            height = _between(u[:, 1], 5.0, 14.0)
            above = bounce_height(height, self.times)
        y = bottom[:, None] - above
        return torch.stack((x[:, None].expand_as(y), y), -1)

    def _throw(
        self,
        sign: int,
        u: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        top: torch.Tensor,
        bottom: torch.Tensor,
    ) -> torch.Tensor:
        lift, along = _between(u[:, 0], 1.6, 2.4), _between(u[:, 1], 0.6, 1.1)
        rise = lift**2 / (2 * GRAVITY)
        height = _between(u[:, 2], 3.0, (bottom - top - rise).clamp(max=12.0))
        landing = (lift + (lift**2 + 2 * GRAVITY * height).sqrt()) / GRAVITY
        time = torch.minimum(self.times, landing[:, None])
        travelled = along * landing
        x0 = _between(u[:, 3], low, high - travelled)
        if sign < 0:
            x0 = _between(u[:, 3], low + travelled, high)
        y = (bottom - height)[:, None] - lift[:, None] * time + 0.5 * GRAVITY * time**2
        return torch.stack((x0[:, None] + sign * along[:, None] * time, y), -1)

    def _hit(self, sign: int, u: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
        gap = extents.sum(-1)
        speed = self.speed(u[:, 0], SIZE - 2 * MARGIN - 2 * gap)
        contact = _between(u[:, 1], 0.25, 0.55) * self.span
        width = speed * self.span + 2 * gap
        left = _between(u[:, 2], MARGIN, SIZE - MARGIN - width)
        first = left + extents[:, 0] if sign > 0 else left + width - extents[:, 0]
        second = first + sign * (speed * contact + gap)
        tallest = extents.amax(-1)
        height = _between(u[:, 3], MARGIN + tallest, FLOOR - tallest)
        v, tc = speed[:, None], contact[:, None]
        striker = first[:, None] + sign * v * torch.minimum(self.times, tc)
        struck = second[:, None] + sign * v * (self.times - tc).clamp(min=0.0)
        y = height[:, None].expand_as(striker)
        return torch.stack((torch.stack((striker, y), -1), torch.stack((struck, y), -1)), 2)


def _between(u: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    width = torch.as_tensor(high - low, dtype=torch.float64)
    assert bool((width >= -1e-9).all()), "a scene must leave room for its motion"
    return low + width * u


def sample(
    captions: Sequence[str],
    frames: int = FRAMES,
    *,
    generator: torch.Generator,
    speeds: str = "train",
) -> Scenes:
    """Draw one scene per caption.

    speeds: ``train``, ``held_out`` (faster) or ``long`` (slow enough for clips of 48 frames).
    Raises `DataError` for a text that is no caption of the world.
    """
    specs = [parse(caption) for caption in captions]
    objects = [(*spec.objects, (COLOURS[0], SHAPES[0]))[:MAX_OBJECTS] for spec in specs]
    indices = torch.tensor([[(COLOURS.index(c), SHAPES.index(s)) for c, s in o] for o in objects])
    radius = torch.tensor([[SIZES[spec.size]] * MAX_OBJECTS for spec in specs], dtype=torch.float64)
    extents = torch.tensor([[EXTENT[s] for _, s in o] for o in objects], dtype=torch.float64) * radius
    counts = [DRAWS[spec.motion.partition(" ")[0]] for spec in specs]
    starts = [0, *accumulate(counts)]
    draws = torch.rand(starts[-1], generator=generator, dtype=torch.float64)
    position = torch.empty(len(specs), frames, MAX_OBJECTS, 2, dtype=torch.float64)
    integrate = _Integrator(frames, SPEEDS[speeds])
    for motion in dict.fromkeys(spec.motion for spec in specs):
        rows = [i for i, spec in enumerate(specs) if spec.motion == motion]
        u = torch.stack([draws[starts[i] : starts[i + 1]] for i in rows])
        position[rows] = integrate(motion, u, extents[rows])
    return Scenes(
        position=position,
        radius=radius,
        colour=indices[..., 0],
        shape=indices[..., 1],
        present=torch.tensor([[True, len(spec.objects) > 1] for spec in specs]),
    )
