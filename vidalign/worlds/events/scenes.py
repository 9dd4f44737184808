"""Scenes of the event world: a window of an endless trajectory, drawn from a caption.

The window begins in the state of the caption's first clause, at a random phase of the motion: anywhere on the path of a
glide, at any moment of a bounce or a swing, with a second object absent. Events happen on frames. The frames at which
one may happen are a renewal process with gaps of 3, 4 or 5 frames, in its stationary state where the window begins.
Every state is followed by the law exactly: reflections and bounces happen between frames, where they are due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vidalign.worlds.events.captions import CaptionSpec, parse
from vidalign.worlds.events.constants import (
    AMPLITUDE,
    APART,
    COLOURS,
    CROSSING,
    EXTENT,
    FLOOR,
    FRAMES,
    GAPS,
    GRAVITY,
    HEIGHT,
    MARGIN,
    MOTIONS,
    PERIOD,
    PROBABILITY,
    SHAPES,
    SIZE,
    SIZES,
    SPEEDS,
    STRAIGHT,
)

START, EACH = 6, 5
"""Uniform numbers that a scene takes at its beginning, and in every later frame."""
OUTSIDE = -1e3
"""Where an object is that is not there."""


@dataclass
class Scenes:
    """A batch of B scenes of F frames with up to two objects each.

    position: ``[B, F, 2, 2]`` centre (x, y) of each object, pixels; radius, shape: ``[B, 2]``; colour, present: ``[B,
    F, 2]``; event: ``[B, F]``, whether one happens on a frame. Shape and colour are indices into the constants.
    """

    position: torch.Tensor
    radius: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    present: torch.Tensor
    event: torch.Tensor


def uniforms(count: int, frames: int, generator: torch.Generator) -> torch.Tensor:
    """The random numbers of `count` scenes, ``[count, numbers]`` in [0, 1), float64."""
    numbers = START + EACH * (frames - 1)
    return torch.rand(count, numbers, generator=generator, dtype=torch.float64)


def futures(u: torch.Tensor, prefix: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers like `u` ``[B, numbers]`` of scenes with the same first `prefix` frames, and other events afterwards.

    The frame of the next possible event is part of the past. A prefix of 0 draws everything anew.
    """
    kept = START + EACH * (prefix - 1) if prefix else 0
    return torch.cat((u[:, :kept], torch.rand(u[:, kept:].shape, generator=generator, dtype=u.dtype)), 1)


def first_gap(u: torch.Tensor) -> torch.Tensor:
    """Frames until the first possible event of a stationary renewal process, 1 or more: its chance is that of a gap
    that is not shorter, over the mean gap."""
    at_least = torch.tensor([sum(gap >= k for gap in GAPS) for k in range(1, max(GAPS) + 1)], dtype=u.dtype)
    return torch.bucketize(u.contiguous(), at_least.cumsum(0) / sum(GAPS), right=True) + 1


@dataclass
class _Cast:
    """The first object of every scene by its caption, ``[B]`` each, and who it shares the picture with."""

    reach: torch.Tensor  # [B, 2] half widths of both objects
    along: torch.Tensor  # axis of its motion, 0 or 1
    sign: torch.Tensor  # direction of a glide, 1 or -1
    motion: torch.Tensor  # index into MOTIONS
    turns: torch.Tensor
    recolours: torch.Tensor
    enters: torch.Tensor


def _cast(specs: Sequence[CaptionSpec]) -> _Cast:
    reach = torch.tensor(
        [(SIZES[s.size] * EXTENT[s.shape], SIZES["small"] * EXTENT[s.other_shape or SHAPES[0]]) for s in specs],
        dtype=torch.float64,
    )
    return _Cast(
        reach,
        torch.tensor([int(s.motion in ("glide up", "glide down", "bounce")) for s in specs]),
        torch.tensor([-1.0 if s.motion.endswith(("left", "up")) else 1.0 for s in specs], dtype=torch.float64),
        torch.tensor([tuple(MOTIONS).index(s.motion) for s in specs]),
        *(torch.tensor([s.event == event for s in specs]) for event in ("turn", "colour", "enter")),
    )


def _room(reach: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest coordinates ``[..., 2]`` (x, y) of objects with half width `reach` ``[...]``."""
    low = (MARGIN + reach)[..., None].expand(*reach.shape, 2)
    return low, torch.stack((SIZE - MARGIN - reach, FLOOR - reach), -1)


def _between(u: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    width = torch.as_tensor(high - low, dtype=torch.float64)
    assert bool((width >= -1e-9).all()), "a scene must leave room for its motion"
    return low + width * u


def bounced(speed: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Height above the floor of a ball that leaves it with `speed` at time 0 and loses nothing."""
    local = time.remainder(2 * speed / GRAVITY)
    return speed * local - 0.5 * GRAVITY * local.square()


class _Play:
    """Draws the beginning of B scenes, then goes from frame to frame."""

    def __init__(self, cast: _Cast, u: torch.Tensor, speeds: tuple[float, float]) -> None:
        self.cast, self.u, rows = cast, u, torch.arange(len(u))
        self.low, self.high = _room(cast.reach)  # [B, 2 objects, 2 axes]
        along = cast.along
        low, high = self.low[rows, 0, along], self.high[rows, 0, along]
        speed = _between(u[:, 0], *speeds)
        room = STRAIGHT * speed
        forth, back = _between(u[:, 1], low, high - room), _between(u[:, 1], low + room, high)
        self.place = torch.empty(len(u), 2, dtype=torch.float64)
        self.place[rows, along] = torch.where(cast.sign > 0, forth, back)
        self.place[rows, 1 - along] = _between(u[:, 2], self.low[rows, 0, 1 - along], self.high[rows, 0, 1 - along])
        self.velocity = torch.zeros_like(self.place)
        self.velocity[rows, along] = cast.sign * speed
        self.second = torch.full_like(self.place, OUTSIDE)
        self.crossing = torch.zeros_like(self.place)
        self.there = torch.zeros(len(u), dtype=torch.bool)
        self.changed = self.there.clone()
        self.wait = first_gap(u[:, 4])

    def step(self, frame: int) -> torch.Tensor:
        """Go on to `frame`; whether an event happens on it, ``[B]``."""
        gap, chance, outcome, lane, pace = self.u[:, START + EACH * (frame - 1) :][:, :EACH].unbind(1)
        absent = ~self.there  # it is never seen to leave and enter on one frame
        self._move()
        self.wait -= 1
        moment = self.wait == 0
        self.wait = torch.where(moment, GAPS[0] + (gap * len(GAPS)).long(), self.wait)
        event = moment & (chance < PROBABILITY) & (absent | ~self.cast.enters)
        self.changed ^= event & self.cast.recolours
        self._turn(event & self.cast.turns, outcome)
        self._enter(event & self.cast.enters, outcome, lane, pace)
        return event

    def _move(self) -> None:
        low, high = self.low[:, 0], self.high[:, 0]
        ahead = self.place + self.velocity
        over = (ahead < low) | (ahead > high)
        self.place = torch.where(ahead < low, 2 * low - ahead, torch.where(ahead > high, 2 * high - ahead, ahead))
        self.velocity = torch.where(over, -self.velocity, self.velocity)
        self.second = self.second + self.crossing
        gone = ((self.second < self.low[:, 1]) | (self.second > self.high[:, 1])).any(1)
        self.there &= ~gone

    def _turn(self, event: torch.Tensor, outcome: torch.Tensor) -> None:
        turned = self.velocity.flip(1).abs() * torch.where(outcome < 0.5, -1.0, 1.0)[:, None]
        self.velocity = torch.where(event[:, None], turned, self.velocity)

    def _enter(self, event: torch.Tensor, outcome: torch.Tensor, lane: torch.Tensor, pace: torch.Tensor) -> None:
        rows, along = torch.arange(len(event)), self.cast.along
        across = self._lane(lane)
        low, high = self.low[rows, 1, along], self.high[rows, 1, along]
        forth = outcome < 0.5
        place, crossing = torch.empty_like(self.place), torch.zeros_like(self.place)
        place[rows, along], place[rows, 1 - along] = torch.where(forth, low, high), across
        crossing[rows, along] = torch.where(forth, 1.0, -1.0) * _between(pace, *CROSSING)
        self.second = torch.where(event[:, None], place, self.second)
        self.crossing = torch.where(event[:, None], crossing, self.crossing)
        self.there |= event

    def _lane(self, u: torch.Tensor) -> torch.Tensor:
        """Where the second object crosses beside the path of the first one, equally likely anywhere."""
        rows, across = torch.arange(len(u)), 1 - self.cast.along
        low, high = self.low[rows, 1, across], self.high[rows, 1, across]
        first, gap = self.place[rows, across], self.cast.reach.sum(1) + APART
        below, above = (first - gap - low).clamp(min=0), (high - first - gap).clamp(min=0)
        offset = u * (below + above)
        return torch.where(offset < below, low + offset, high - above + (offset - below))


def sample(captions: Sequence[str], u: torch.Tensor, speeds: str = "train") -> Scenes:
    """One scene per caption from its numbers `u` ``[B, numbers]`` (see `uniforms`), whose count says how many frames.

    speeds: ``train`` or ``held_out`` (faster glides). Raises `DataError` for a text that is no caption of the world.
    """
    specs = [parse(caption) for caption in captions]
    cast, frames = _cast(specs), (u.shape[1] - START) // EACH + 1
    play = _Play(cast, u, SPEEDS[speeds])
    shown = [(play.place, play.second, play.there.clone(), play.changed.clone(), torch.zeros_like(play.there))]
    for frame in range(1, frames):
        event = play.step(frame)
        shown.append((play.place, play.second, play.there.clone(), play.changed.clone(), event))
    place, second, there, changed, event = (torch.stack(each, 1) for each in zip(*shown, strict=True))
    place = _periodic(place, cast, u)
    own, other = (
        torch.tensor([COLOURS.index(name or s.colour) for s, name in zip(specs, names, strict=True)])[:, None]
        for names in ([s.colour for s in specs], [s.other_colour for s in specs])
    )
    shapes = [[SHAPES.index(s.shape), SHAPES.index(s.other_shape or SHAPES[0])] for s in specs]
    return Scenes(
        position=torch.stack((place, torch.where(there[..., None], second, OUTSIDE)), 2),
        radius=torch.tensor([[SIZES[s.size], SIZES["small"]] for s in specs], dtype=torch.float64),
        colour=torch.stack((torch.where(changed, other, own), other.expand_as(changed)), -1),
        shape=torch.tensor(shapes),
        present=torch.stack((torch.ones_like(there), there), -1),
        event=event,
    )


def _periodic(place: torch.Tensor, cast: _Cast, u: torch.Tensor) -> torch.Tensor:
    """Tracks ``[B, F, 2]`` with those of bounces and swings put in, which need no steps."""
    times = torch.arange(place.shape[1], dtype=torch.float64)
    low, high = _room(cast.reach[:, 0])
    names = list(MOTIONS)
    speed = (2 * GRAVITY * _between(u[:, 0], *HEIGHT)).sqrt()[:, None]
    above = bounced(speed, times + u[:, 1:2] * 2 * speed / GRAVITY)
    bounce = torch.stack((place[..., 0], high[:, 1:] - above), -1)
    width, period = _between(u[:, 0], *AMPLITUDE), _between(u[:, 3], *PERIOD)
    centre = _between(u[:, 5], low[:, 0] + width, high[:, 0] - width)
    swing = centre[:, None] + width[:, None] * (2 * torch.pi * (times / period[:, None] + u[:, 1:2])).sin()
    swing = torch.stack((swing, place[..., 1]), -1)
    kind = cast.motion[:, None, None]
    place = torch.where(kind == names.index("bounce"), bounce, place)
    return torch.where(kind == names.index("swing"), swing, place)


def draw(captions: Sequence[str], frames: int = FRAMES, *, generator: torch.Generator, speeds: str = "train") -> Scenes:
    """`sample` with numbers from one generator."""
    return sample(captions, uniforms(len(captions), frames, generator), speeds)
