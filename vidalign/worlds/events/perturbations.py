"""Ways to corrupt ground truth of the event world, to see that the scorer and the auditor notice what they must.

The rows of the first video world, and those that break what is new here: events that never happen, too many of them, a
jump, and a second clause of another kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from vidalign.worlds.events.captions import CaptionSpec, is_caption, parse
from vidalign.worlds.events.constants import EVENTS, MOTIONS, SHAPES, SIZE
from vidalign.worlds.events.renderer import render
from vidalign.worlds.events.scenes import EACH, START, Scenes, sample, uniforms
from vidalign.worlds.video.perturbations import ROWS as COMMON
from vidalign.worlds.video.perturbations import blur, displaced, extra_object, noisy_track, shuffled

__all__ = ("ROWS", "noisy_track", "table")
ROWS = (*COMMON, "wrong event only", "no event", "events too often", "jump of 3 px")


def half_speed(scenes: Scenes) -> Scenes:
    """The first half of the clip in twice the time, positions interpolated between frames that show the object."""
    times = torch.arange(scenes.event.shape[1]) / 2
    first, last = times.floor().long(), times.ceil().long()
    low, high = scenes.position[:, first], scenes.position[:, last]
    both = (scenes.present[:, first] & scenes.present[:, last])[..., None]
    return dataclasses.replace(
        scenes,
        position=torch.where(both, (low + high) / 2, low),
        colour=scenes.colour[:, first],
        present=scenes.present[:, first],
    )


def jump(scenes: Scenes, length: float) -> Scenes:
    """The first object sideways from the middle of the clip on, towards the middle of the picture."""
    position = scenes.position.clone()
    late = position[:, position.shape[1] // 2 :, 0, 0]
    late += torch.where(late[:, :1] < SIZE / 2, length, -length)
    return dataclasses.replace(scenes, position=position)


def with_chance(u: torch.Tensor, chance: float) -> torch.Tensor:
    """The numbers of scenes in which every possible event draws the number `chance`: 0 happens, 1 does not."""
    out = u.clone()
    out[:, START + 1 :: EACH] = chance
    return out


def _others(caption: str, key: str, values: Sequence[str]) -> list[str]:
    """Captions of the same object with another motion or event."""
    spec = parse(caption)
    other = spec.other_colour or next(c for c in ("red", "blue") if c != spec.colour)
    looks = {"turn": (None, None), "colour": (other, None), "enter": (other, spec.other_shape or SHAPES[0])}
    made = []
    for value in values:
        new: CaptionSpec = dataclasses.replace(spec, **{key: value})
        colour, shape = looks[new.event]
        text = str(dataclasses.replace(new, other_colour=colour, other_shape=shape))
        made += [text] if value != getattr(spec, key) and is_caption(text) else []
    return made


def _picked(captions: Sequence[str], key: str, values: Sequence[str], generator: torch.Generator) -> list[str]:
    choices = [_others(caption, key, values) for caption in captions]
    return [some[int(torch.randint(len(some), (), generator=generator))] for some in choices]


def table(
    captions: Sequence[str], frames: int, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor, list[str]]]:
    """Every row of `ROWS`: its name, clips ``[B, F, 3, H, W]`` in [0, 1], and the captions they are judged by."""
    u = uniforms(len(captions), frames, generator)
    scenes, same = sample(captions, u), list(captions)
    clips = render(scenes)
    empty = dataclasses.replace(scenes, present=torch.zeros_like(scenes.present))
    rolled = same[len(same) // 2 :] + same[: len(same) // 2]
    named = [{spec.colour, spec.other_colour or spec.colour} for spec in map(parse, same)]
    noise = torch.randn(clips.shape, generator=generator)
    corrupted = (
        (clips, same),
        (torch.rand(clips.shape, generator=generator), same),
        (clips[:, :1].expand_as(clips).contiguous(), same),
        (clips, rolled),
        (clips, _picked(same, "motion", tuple(MOTIONS), generator)),
        (shuffled(clips, generator), same),
        (blur(clips, 1.0), same),
        (blur(clips, 2.0), same),
        (clips.flip(1), same),
        (render(half_speed(scenes)), same),
        (render(displaced(scenes, 2.0, generator)), same),
        ((clips + 0.05 * noise).clamp(0, 1), same),
        (extra_object(clips, named, generator), same),
        (render(empty), same),
        (clips, _picked(same, "event", tuple(EVENTS), generator)),
        (render(sample(captions, with_chance(u, 1.0))), same),
        (render(sample(captions, with_chance(u, 0.0))), same),
        (render(jump(scenes, 3.0)), same),
    )
    for name, (each, prompts) in zip(ROWS, corrupted, strict=True):
        yield name, each, prompts
