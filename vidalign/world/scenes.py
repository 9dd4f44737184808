"""Scenes of the video world: initial states drawn from a caption, trajectories in closed form with exact events.

Laws (constants in `constants.py`): still; glide at constant velocity; fall from rest, inelastic; bounce with
restitution .8; throw (ballistic, then it lies where it landed); elastic collision of equal masses, in which the
first object stops and the second goes on with its velocity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vidalign.world.captions import CaptionSpec, parse
from vidalign.world.constants import (
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


@dataclass
class Scenes:
    """A batch of B scenes of F frames with up to two objects each.

    position: ``[B, F, 2, 2]`` centre (x, y) of each object, pixels; radius: ``[B, 2]``; colour, shape: ``[B, 2]``
    indices into the constants; present: ``[B, 2]``, false where a scene has no second object.
    """

    position: torch.Tensor
    radius: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    present: torch.Tensor


def bounce_height(height: float, times: torch.Tensor) -> torch.Tensor:
    """Height above the floor of a ball dropped from `height` at time 0, restitution .8, at every time."""
    first = math.sqrt(2 * height / GRAVITY)
    result = (height - 0.5 * GRAVITY * times**2).clamp(min=0.0) * (times < first)
    start, speed = first, RESTITUTION * math.sqrt(2 * GRAVITY * height)
    while speed > 0.02 and start < float(times.max()):
        flight = 2 * speed / GRAVITY
        local = times - start
        inside = (local >= 0) & (local < flight)
        result = torch.where(inside, speed * local - 0.5 * GRAVITY * local**2, result)
        start, speed = start + flight, speed * RESTITUTION
    return result


class _Sampler:
    """Draws the initial state of one scene and integrates it; uniform draws from one generator."""

    def __init__(self, frames: int, speeds: tuple[float, float], generator: torch.Generator) -> None:
        self.times = torch.arange(frames, dtype=torch.float64)
        self.span = float(frames - 1)
        self.speeds = speeds
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        assert high >= low - 1e-9, "a scene must leave room for its motion"
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def speed(self, room: float) -> float:
        """A speed of the split's range with which an object crosses at most `room` pixels in the clip."""
        low, high = self.speeds
        high = min(high, room / self.span)
        return self.uniform(min(low, high), high)

    def __call__(self, spec: CaptionSpec) -> torch.Tensor:
        """Positions ``[F, 2, 2]``; the second object lies outside the picture when there is none."""
        radius = SIZES[spec.size]
        extents = [EXTENT[shape] * radius for _, shape in spec.objects]
        low, high, top, bottom = (
            MARGIN + extents[0],
            SIZE - MARGIN - extents[0],
            MARGIN + extents[0],
            FLOOR - extents[0],
        )
        family, _, direction = spec.motion.partition(" ")
        out = torch.full((len(self.times), MAX_OBJECTS, 2), -1e3, dtype=torch.float64)
        if family == "still":
            x, y = self.uniform(low, high), self.uniform(top, bottom)
            out[:, 0] = torch.tensor([x, y], dtype=torch.float64)
        elif family == "glide":
            out[:, 0] = self._glide(direction, low, high, top, bottom)
        elif family in ("fall", "bounce"):
            out[:, 0] = self._drop(family, low, high, top, bottom)
        elif family == "throw":
            out[:, 0] = self._throw(-1 if direction == "left" else 1, low, high, top, bottom)
        else:
            out[:] = self._hit(-1 if direction == "left" else 1, extents)
        return out

    def _glide(self, direction: str, low: float, high: float, top: float, bottom: float) -> torch.Tensor:
        horizontal = direction in ("left", "right")
        sign = -1 if direction in ("left", "up") else 1
        start, end = (low, high) if horizontal else (top, bottom)
        speed = self.speed(end - start)
        travelled = speed * self.span
        first = self.uniform(start, end - travelled) if sign > 0 else self.uniform(start + travelled, end)
        along = first + sign * speed * self.times
        across = torch.full_like(along, self.uniform(top, bottom) if horizontal else self.uniform(low, high))
        return torch.stack((along, across) if horizontal else (across, along), -1)

    def _drop(self, family: str, low: float, high: float, top: float, bottom: float) -> torch.Tensor:
        x = torch.full_like(self.times, self.uniform(low, high))
        if family == "fall":
            height = self.uniform(10.0, bottom - top)
            y = bottom - (height - 0.5 * GRAVITY * self.times**2).clamp(min=0.0)
        else:
            height = self.uniform(5.0, 14.0)  # first impact after 4.5 to 7.5 frames: every clip shows a rebound
            y = bottom - bounce_height(height, self.times)
        return torch.stack((x, y), -1)

    def _throw(self, sign: int, low: float, high: float, top: float, bottom: float) -> torch.Tensor:
        lift, along = self.uniform(1.6, 2.4), self.uniform(0.6, 1.1)
        rise = lift**2 / (2 * GRAVITY)
        height = self.uniform(3.0, min(12.0, bottom - top - rise))
        landing = (lift + math.sqrt(lift**2 + 2 * GRAVITY * height)) / GRAVITY
        time = self.times.clamp(max=landing)
        travelled = along * landing
        x0 = self.uniform(low, high - travelled) if sign > 0 else self.uniform(low + travelled, high)
        y = bottom - height - lift * time + 0.5 * GRAVITY * time**2
        return torch.stack((x0 + sign * along * time, y), -1)

    def _hit(self, sign: int, extents: list[float]) -> torch.Tensor:
        gap = extents[0] + extents[1]
        room = SIZE - 2 * MARGIN - 2 * gap
        speed = self.speed(room)
        contact = self.uniform(0.25, 0.55) * self.span
        width = speed * self.span + 2 * gap
        left = self.uniform(MARGIN, SIZE - MARGIN - width)
        first = left + extents[0] if sign > 0 else left + width - extents[0]
        second = first + sign * (speed * contact + gap)
        tallest = max(extents)
        y = torch.full_like(self.times, self.uniform(MARGIN + tallest, FLOOR - tallest))
        striker = first + sign * speed * self.times.clamp(max=contact)
        struck = second + sign * speed * (self.times - contact).clamp(min=0.0)
        return torch.stack((torch.stack((striker, y), -1), torch.stack((struck, y), -1)), 1)


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
    sampler = _Sampler(frames, SPEEDS[speeds], generator)
    specs = [parse(caption) for caption in captions]
    pad = [(0, 0)]
    objects = [[(COLOURS.index(c), SHAPES.index(s)) for c, s in spec.objects] for spec in specs]
    padded = torch.tensor([(o + pad)[:MAX_OBJECTS] for o in objects]).reshape(-1, MAX_OBJECTS, 2)
    return Scenes(
        position=torch.stack([sampler(spec) for spec in specs]),
        radius=torch.tensor([[SIZES[spec.size]] * MAX_OBJECTS for spec in specs], dtype=torch.float64),
        colour=padded[..., 0],
        shape=padded[..., 1],
        present=torch.tensor([[True, len(o) > 1] for o in objects]),
    )
