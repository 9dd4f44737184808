"""Auditor of the event world: the held-out judge, never a training signal.

It looks by other means than the scorer: nearest colour, hard masks, medians, binary templates
(`vidalign.worlds.video.templates`) and finite differences (`kinematics.py`). Every metric is graded in [0, 1]. Metrics
of objects take the worse object in each frame, then the mean of the mean and the worst quarter of frames:

- ``colour``, ``count``, ``shape``, ``size``, ``appearance``, ``permanence``: those of the first video world. An object
  that changes colour is judged by the colour it has; one that enters, while it is there;
- ``motion``: does the object begin and go on as the first clause says;
- ``physics``: does each frame follow from the two before it. 0 where the captioned motion does not happen at all;
- ``event``: the clip ends as the second clause says, and events come neither too often nor too close together.

``composite`` is the geometric mean of motion, physics, event, appearance, permanence and content, each at least .02.
Content is the geometric mean of colour, count, shape and size. ``lawful`` is 1 when all but ``event`` are at least .5;
``pass`` when all nine are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vidalign.deferred import without_gradient
from vidalign.worlds.events.captions import CaptionSpec, parse
from vidalign.worlds.events.constants import COLOURS, EXTENT, SHAPES, SIZES
from vidalign.worlds.events.kinematics import Tracks, event_score, motion_score, physics_score, turned
from vidalign.worlds.video.kinematics import pool, ramp
from vidalign.worlds.video.templates import cleanness, labels_of, object_metrics, watch

METRICS = ("colour", "count", "shape", "size", "motion", "physics", "event", "appearance", "permanence")
FRAME_METRICS = tuple(name for name in METRICS if name not in ("motion", "physics", "event"))
LEAST = 0.02
SLICE = 16
"""Clips looked at together."""


@dataclass
class Glance:
    """What is seen of B clips: frame metrics ``[B, F]`` by name, tracks `xy` ``[B, F, 2, 2]``, half widths ``[B, 2]``,
    `there` and `changed` ``[B, F]``: whether the second object is there, and whether the first has its other colour."""

    frames: dict[str, torch.Tensor]
    xy: torch.Tensor
    extents: torch.Tensor
    there: torch.Tensor
    changed: torch.Tensor


def _glance(clips: torch.Tensor, prompts: Sequence[str]) -> Glance:
    specs, batch = [parse(prompt) for prompt in prompts], len(prompts)
    colours, shapes, radii = _wanted(specs, clips)
    labels = labels_of(clips)
    number = torch.arange(batch, device=clips.device).repeat(2)
    own, other = torch.cat((colours[:, 0], colours[:, 1])), torch.cat((colours[:, 1], colours[:, 0]))
    seen = watch(clips, labels, number, own, torch.where(other == own, -2, other))
    graded = object_metrics(seen, torch.cat((shapes[:, 0], shapes[:, 1])), torch.cat((radii[:, 0], radii[:, 1])))
    area, centre = (each.unflatten(0, (2, batch)) for each in (seen.area, seen.centre))
    recolours, enters = (
        torch.tensor([s.event == event for s in specs], device=clips.device)[:, None] for event in ("colour", "enter")
    )
    changed = recolours & (area[1] > area[0])
    there = enters & (area[1] > 0.5 * math.pi * radii[:, 1:] ** 2)
    frames = {}
    for name, values in graded.items():
        first, second = values.unflatten(0, (2, batch))
        first = torch.where(changed, second, first)
        frames[name] = torch.where(there, torch.minimum(first, second), first)
    frames["permanence"] = _permanence(torch.where(changed, area[1], area[0]), radii[:, :1])
    shown = torch.where(changed, area[1], area[0]) + area[1] * there
    stray = ((labels > 0).to(clips).sum((-2, -1)) - shown).clamp(min=0) / (math.pi * radii[:, :1] ** 2)
    frames["count"] = frames["visible"] / (1 + ((stray - 0.08).clamp(min=0) / 0.35) ** 2)
    frames["appearance"] = frames["appearance"] * cleanness(clips, labels)
    first = torch.where(changed[..., None], centre[1], centre[0])
    extent = clips.new_tensor([EXTENT[name] for name in SHAPES])[shapes] * radii
    return Glance(frames, torch.stack((first, centre[1]), 2), extent, there, changed)


def _wanted(specs: Sequence[CaptionSpec], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Colours and shapes ``[B, 2]`` as indices and radii ``[B, 2]`` of the first object and of the second, or of the
    first one's other look."""
    colours = [(COLOURS.index(s.colour), COLOURS.index(s.other_colour or s.colour)) for s in specs]
    shapes = [(SHAPES.index(s.shape), SHAPES.index(s.other_shape or s.shape)) for s in specs]
    radii = [(SIZES[s.size], SIZES["small" if s.event == "enter" else s.size]) for s in specs]
    device = like.device
    return torch.tensor(colours, device=device), torch.tensor(shapes, device=device), like.new_tensor(radii)


def _permanence(area: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The first object is there, whatever its colour, and keeps its area, ``[B, F]``."""
    change = (area / area.median(1, keepdim=True).values.clamp(min=1) - 1).abs()
    return ramp(area / (math.pi * radius**2), 0.1, 0.45) * (1 - ramp(change, 0.25, 0.9))


@without_gradient
def look(clips: torch.Tensor, prompts: Sequence[str]) -> Glance:
    """What the auditor sees in clips ``[B, F, 3, H, W]`` in [0, 1], `SLICE` clips at a time."""
    assert clips.ndim == 5 and len(clips) == len(prompts) > 0, "one caption for each clip"
    starts = range(0, len(clips), SLICE)
    parts = [_glance(clips[k : k + SLICE], prompts[k : k + SLICE]) for k in starts]
    frames = {name: torch.cat([part.frames[name] for part in parts]) for name in parts[0].frames}
    others = (torch.cat([getattr(part, name) for part in parts]) for name in ("xy", "extents", "there", "changed"))
    return Glance(frames, *others)


def _families(prompts: Sequence[str], like: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Motion and event of every family among the captions, and its rows."""
    families = [(spec.motion, spec.event) for spec in map(parse, prompts)]
    for motion, event in dict.fromkeys(families):
        rows = [b for b, own in enumerate(families) if own == (motion, event)]
        yield motion, event, torch.tensor(rows, device=like.device)


def _tracks(glance: Glance, motion: str, rows: torch.Tensor) -> Tracks:
    along = int(motion in ("glide up", "glide down", "bounce"))
    sign = -1.0 if motion.endswith(("left", "up")) else 1.0
    return Tracks(glance.xy[rows], glance.extents[rows], glance.there[rows], along, sign)


def event_frames(glance: Glance, prompts: Sequence[str]) -> torch.Tensor:
    """The frames ``[B, F]`` on which an event of the captioned kind is seen."""
    out = torch.zeros_like(glance.there)
    for motion, event, rows in _families(prompts, glance.xy):
        there, changed = glance.there[rows], glance.changed[rows]
        if event == "turn":
            out[rows] = turned(_tracks(glance, motion, rows))
        else:
            seen = changed[:, 1:] ^ changed[:, :-1] if event == "colour" else there[:, 1:] & ~there[:, :-1]
            out[rows, 1:] = seen
    return out


def _dynamics(glance: Glance, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Motion, physics and event ``[B]``; captions of one family are judged together."""
    out = {name: glance.xy.new_zeros(len(prompts)) for name in ("motion", "physics", "event")}
    happened = event_frames(glance, prompts)
    for motion, event, rows in _families(prompts, glance.xy):
        tracks, visible = _tracks(glance, motion, rows), glance.frames["visible"][rows]
        begins = ~(glance.changed[rows, 0] | glance.there[rows, 0])
        moves = motion_score(motion, event == "turn", tracks) * visible.mean(1) * begins
        out["motion"][rows] = moves
        out["physics"][rows] = physics_score(motion, event == "turn", tracks, visible) * ramp(moves, 0.0, 0.25)
        ends = {"colour": glance.changed[rows, -1], "enter": glance.there[rows, -1]}
        fulfilled = ends.get(event, happened[rows].sum(1) % 2 == 1)
        score = event_score(happened[rows], fulfilled, event != "enter")
        out["event"][rows] = score.to(glance.xy) * ramp(visible.mean(1), 0.5, 1.0)
    return out


@without_gradient
def audit(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Judge clips ``[B, F, 3, H, W]`` in [0, 1]: `METRICS`, composite, lawful and pass, ``[B]`` each.

    A clip with pixels that are not finite is NaN throughout. Raises `DataError` for a prompt that is no caption.
    """
    glance = look(clips, prompts)
    out = {name: pool(glance.frames[name]) for name in FRAME_METRICS} | _dynamics(glance, prompts)
    stacked = torch.stack([out[name] for name in METRICS])
    logs = stacked.clamp(min=LEAST).log()
    out["composite"] = torch.cat((logs[:4].mean(0, keepdim=True), logs[4:])).mean(0).exp()
    good = stacked >= 0.5
    event = METRICS.index("event")
    out["lawful"] = torch.cat((good[:event], good[event + 1 :])).all(0).to(clips)
    out["pass"] = good.all(0).to(clips)
    broken = ~clips.flatten(1).isfinite().all(1)
    return {name: torch.where(broken, torch.nan, out[name]) for name in (*METRICS, "composite", "lawful", "pass")}


def quarter_audit(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """`FRAME_METRICS` of every quarter of long clips, ``[B, 4]``: how they fare as the clip goes on."""
    frames, length = look(clips, prompts).frames, clips.shape[1] // 4
    assert length > 0, "quarters need at least four frames"
    spans = [slice(n * length, (n + 1) * length) for n in range(4)]
    return {name: torch.stack([pool(frames[name][:, span]) for span in spans], 1) for name in FRAME_METRICS}
