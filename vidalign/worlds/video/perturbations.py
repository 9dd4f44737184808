"""Ways to corrupt ground-truth clips, to see that the scorer and the auditor notice what they must.

`table` yields every row with its clips and the captions they are to be judged by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.functional import conv2d

from vidalign.worlds.video.captions import CaptionSpec, is_caption, parse
from vidalign.worlds.video.constants import COLOURS, FLOOR, MARGIN, MOTIONS, PALETTE, SHAPES, SIZE
from vidalign.worlds.video.renderer import coverage, render
from vidalign.worlds.video.scenes import Scenes, sample

AnyScenes = TypeVar("AnyScenes", bound=Any)
"""Scenes of any world: a dataclass with `position` ``[B, F, objects, 2]``."""
ROWS = (
    "ground truth",
    "uniform noise",
    "frozen first frame",
    "wrong caption",
    "wrong motion only",
    "shuffled frames",
    "blur 1 px",
    "blur 2 px",
    "time reversed",
    "half speed",
    "jitter 2 px",
    "noise sd .05",
    "extra object",
    "empty scene",
)


def blur(clips: torch.Tensor, sd: float) -> torch.Tensor:
    """Gaussian blur with a standard deviation in pixels; the edge of the picture is repeated."""
    reach = int(4 * sd) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sd) ** 2)
    kernel = kernel / kernel.sum()
    flat = clips.flatten(0, 2)[:, None]
    flat = torch.nn.functional.pad(flat, (reach,) * 4, mode="replicate")
    return conv2d(conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(clips)


def shuffled(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The frames of every clip in an order of its own."""
    order = torch.rand(clips.shape[:2], generator=generator).argsort(1)
    return clips[torch.arange(len(clips))[:, None], order]


def half_speed(scenes: Scenes) -> Scenes:
    """The first half of the clip in twice the time, positions interpolated between frames."""
    times = torch.arange(scenes.position.shape[1]) / 2
    low, high = scenes.position[:, times.floor().long()], scenes.position[:, times.ceil().long()]
    return dataclasses.replace(scenes, position=(low + high) / 2)


def displaced(scenes: AnyScenes, length: float, generator: torch.Generator) -> AnyScenes:
    """Every object in every frame moved `length` pixels in a direction of its own."""
    angle = 2 * torch.pi * torch.rand(scenes.position.shape[:-1], generator=generator, dtype=torch.float64)
    return dataclasses.replace(scenes, position=scenes.position + length * torch.stack((angle.cos(), angle.sin()), -1))


def noisy_track(scenes: AnyScenes, sd: float, generator: torch.Generator) -> AnyScenes:
    """Normal noise on every position."""
    noise = torch.randn(scenes.position.shape, generator=generator, dtype=torch.float64)
    return dataclasses.replace(scenes, position=scenes.position + sd * noise)


def extra_object(clips: torch.Tensor, named: Sequence[Collection[str]], generator: torch.Generator) -> torch.Tensor:
    """One more object, at rest, small, of a colour that is not among those which the caption of the clip names."""
    low, high = MARGIN + 4, SIZE - MARGIN - 4
    place = low + (torch.tensor([high, FLOOR - 4]) - low) * torch.rand(len(clips), 2, generator=generator)
    shape = torch.randint(len(SHAPES), (len(clips),), generator=generator)
    position = place[:, None].expand(-1, clips.shape[1], -1)
    mask = coverage(position, torch.full((len(clips),), 3.0), shape)[:, :, None]
    colours = []
    for taken in named:
        free = [name for name in COLOURS if name not in taken]
        colours.append(PALETTE[free[int(torch.randint(len(free), (), generator=generator))]])
    colour = torch.tensor(colours)[:, None, :, None, None]
    return clips + mask * (colour - clips)


def other_motion(caption: str, generator: torch.Generator) -> str:
    """A caption of the same objects with another motion."""
    spec = parse(caption)
    others = [dataclasses.replace(spec, motion=motion) for motion in MOTIONS if motion != spec.motion]
    valid = [str(other) for other in others if _possible(other)]
    return valid[int(torch.randint(len(valid), (), generator=generator))]


def _possible(spec: CaptionSpec) -> bool:
    return spec.motion.startswith("hit") == (spec.other_colour is not None) and is_caption(str(spec))


def table(
    captions: Sequence[str], frames: int, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor, list[str]]]:
    """Every row of `ROWS`: its name, clips ``[B, F, 3, H, W]`` in [0, 1], and their captions."""
    scenes = sample(captions, frames, generator=generator)
    clips, same = render(scenes), list(captions)
    empty = dataclasses.replace(scenes, present=torch.zeros_like(scenes.present))
    rolled = same[len(same) // 2 :] + same[: len(same) // 2]
    yield ROWS[0], clips, same
    yield ROWS[1], torch.rand(clips.shape, generator=generator), same
    yield ROWS[2], clips[:, :1].expand_as(clips).contiguous(), same
    yield ROWS[3], clips, rolled
    yield ROWS[4], clips, [other_motion(caption, generator) for caption in same]
    yield ROWS[5], shuffled(clips, generator), same
    yield ROWS[6], blur(clips, 1.0), same
    yield ROWS[7], blur(clips, 2.0), same
    yield ROWS[8], clips.flip(1), same
    yield ROWS[9], render(half_speed(scenes)), same
    yield ROWS[10], render(displaced(scenes, 2.0, generator)), same
    yield ROWS[11], (clips + 0.05 * torch.randn(clips.shape, generator=generator)).clamp(0, 1), same
    yield ROWS[12], extra_object(clips, [{c for c, _ in parse(p).objects} for p in same], generator), same
    yield ROWS[13], render(empty), same
