"""Auditor of the video world: the held-out judge, never a training signal.

It looks by other means than the scorer: nearest colour in a small codebook, hard masks, medians, binary templates,
finite differences (`kinematics.py`). Every metric is graded in [0, 1]. Metrics of objects take the worse object in each
frame, then the mean of the mean and the worst quarter of frames:

- ``colour``: share of the object's pixels that carry the captioned colour;
- ``count``: 1 without stray pixels, falling with their area against an object's;
- ``shape``: overlap with the captioned template against that with the best other shape;
- ``size``: area against the captioned one;
- ``motion``: does the track do what the caption says;
- ``physics``: does each frame follow from the ones before. 0 where the captioned motion does not happen at all, since a
  frozen clip breaks no law;
- ``appearance``: clean ground, pure colour, sharp edges, silhouette equal to a template;
- ``permanence``: the object is there in every frame and keeps its area.

``composite`` is the geometric mean of motion, physics, appearance, permanence and content, each at least .02. Content
is the geometric mean of colour, count, shape and size. ``pass`` is 1 when all eight are at least .5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vidalign.deferred import without_gradient
from vidalign.worlds.video.captions import CaptionSpec, parse
from vidalign.worlds.video.constants import COLOURS, EXTENT, SHAPES, SIZES
from vidalign.worlds.video.kinematics import Tracks, motion_score, physics_score, pool, ramp
from vidalign.worlds.video.templates import cleanness, labels_of, object_metrics, watch, worst

METRICS = ("colour", "count", "shape", "size", "motion", "physics", "appearance", "permanence")
FRAME_METRICS = tuple(name for name in METRICS if name not in ("motion", "physics"))
LEAST = 0.02
SLICE = 16
"""Clips looked at together: larger intermediate tensors leave the caches and cost half the speed."""


@dataclass
class Request:
    """Captions of a batch, flattened to R objects: clip, colour, other, shape ``[R]`` and radius ``[R]``."""

    specs: list[CaptionSpec]
    clip: torch.Tensor
    colour: torch.Tensor
    other: torch.Tensor
    shape: torch.Tensor
    radius: torch.Tensor


def _request(prompts: Sequence[str], like: torch.Tensor) -> Request:
    specs = [parse(prompt) for prompt in prompts]
    rows = []
    for b, spec in enumerate(specs):
        indices = [(COLOURS.index(c), SHAPES.index(s)) for c, s in spec.objects]
        for k, (own, kind) in enumerate(indices):
            rows.append((b, own, indices[1 - k][0] if len(indices) > 1 else -2, kind))
    clip, colour, other, shape = torch.tensor(rows, device=like.device).unbind(1)
    radius = like.new_tensor([SIZES[specs[row[0]].size] for row in rows])
    return Request(specs, clip, colour, other, shape, radius)


def _tracks(request: Request, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions ``[B, F, 2, 2]`` and half widths ``[B, 2]``; a single object fills both places."""
    extent = centre.new_tensor([EXTENT[name] for name in SHAPES])[request.shape] * request.radius
    counts = torch.tensor([len(spec.objects) for spec in request.specs], device=centre.device)
    last = counts.cumsum(0) - 1
    both = torch.stack((last - counts + 1, last), 1)
    return centre[both].transpose(1, 2), extent[both]


@dataclass
class Glance:
    """What is judged: frame metrics ``[B, F]`` by name, tracks ``[B, F, 2, 2]``, half widths ``[B, 2]``."""

    frames: dict[str, torch.Tensor]
    xy: torch.Tensor
    extents: torch.Tensor


def _glance(clips: torch.Tensor, prompts: Sequence[str]) -> Glance:
    request = _request(prompts, clips)
    labels = labels_of(clips)
    seen = watch(clips, labels, request.clip, request.colour, request.other)
    metrics = object_metrics(seen, request.shape, request.radius)
    frames = {name: worst(values, request.clip, len(clips)) for name, values in metrics.items()}
    own = torch.zeros_like(frames["colour"]).index_add(0, request.clip, seen.area)
    area = clips.new_tensor([math.pi * SIZES[spec.size] ** 2 for spec in request.specs])
    stray = ((labels > 0).to(clips).sum((-2, -1)) - own).clamp(min=0) / area[:, None]
    frames["count"] = frames["visible"] / (1 + ((stray - 0.08).clamp(min=0) / 0.35) ** 2)
    frames["appearance"] = frames["appearance"] * cleanness(clips, labels)
    return Glance(frames, *_tracks(request, seen.centre))


@without_gradient
def look(clips: torch.Tensor, prompts: Sequence[str]) -> Glance:
    """What the auditor sees in clips ``[B, F, 3, H, W]`` in [0, 1], `SLICE` clips at a time."""
    assert clips.ndim == 5 and len(clips) == len(prompts) > 0, "one caption for each clip"
    starts = range(0, len(clips), SLICE)
    parts = [_glance(clips[k : k + SLICE], prompts[k : k + SLICE]) for k in starts]
    return Glance(
        {name: torch.cat([part.frames[name] for part in parts]) for name in parts[0].frames},
        torch.cat([part.xy for part in parts]),
        torch.cat([part.extents for part in parts]),
    )


def _motion(glance: Glance, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Motion and physics scores ``[B]``; captions of one motion are judged together."""
    motion, physics = glance.xy.new_zeros(len(prompts)), glance.xy.new_zeros(len(prompts))
    laws = [parse(prompt).motion for prompt in prompts]
    for law in dict.fromkeys(laws):
        rows = torch.tensor([b for b, own in enumerate(laws) if own == law], device=motion.device)
        tracks, visible = Tracks(glance.xy[rows], glance.extents[rows]), glance.frames["visible"][rows]
        motion[rows] = motion_score(law, tracks) * visible.mean(1)
        physics[rows] = physics_score(law, tracks, visible) * ramp(motion[rows], 0.0, 0.25)
    return motion, physics


@without_gradient
def audit(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Judge clips ``[B, F, 3, H, W]`` in [0, 1]: `METRICS`, composite and pass, ``[B]`` each.

    A clip with pixels that are not finite is NaN throughout. Raises `DataError` for a prompt that is no
    caption.
    """
    glance = look(clips, prompts)
    out = {name: pool(glance.frames[name]) for name in FRAME_METRICS}
    out["motion"], out["physics"] = _motion(glance, prompts)
    stacked = torch.stack([out[name] for name in METRICS])
    logs = stacked.clamp(min=LEAST).log()
    out["composite"] = torch.cat((logs[:4].mean(0, keepdim=True), logs[4:])).mean(0).exp()
    out["pass"] = (stacked >= 0.5).all(0).to(clips)
    broken = ~clips.flatten(1).isfinite().all(1)
    return {name: torch.where(broken, torch.nan, out[name]) for name in (*METRICS, "composite", "pass")}


def quarter_audit(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """`FRAME_METRICS` of every quarter of long clips, ``[B, 4]``: how they fare as the clip goes on."""
    frames, length = look(clips, prompts).frames, clips.shape[1] // 4
    assert length > 0, "quarters need at least four frames"
    spans = [slice(n * length, (n + 1) * length) for n in range(4)]
    return {name: torch.stack([pool(frames[name][:, span]) for span in spans], 1) for name in FRAME_METRICS}
