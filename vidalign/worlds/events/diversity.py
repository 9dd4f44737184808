"""Diversity of clips of the event world: how far beginnings and futures of a caption spread, against the world's own.

A student that draws one clip per caption can satisfy every judge of single clips; its diversity is 0. One that draws
different beginnings and always the same future has half. Tracks and events are the auditor's.

- ``beginnings``: spread of where the object is in the first frame and how it leaves it;
- ``futures``: spread of the frame of the first event and of how the clip ends, relative to its beginning;
- ``diversity``: their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidalign.engine.rng import generator
from vidalign.errors import DataError
from vidalign.worlds.events.auditor import Glance, event_frames, look
from vidalign.worlds.events.captions import is_caption, parse
from vidalign.worlds.events.renderer import clips as render_clips

REFERENCE = 64
"""Ground-truth clips that show the world's own spread of a caption."""
SMALLEST = 0.3
"""Spread of the world below which a coordinate says nothing: pixels or frames."""
PARTS = ("beginnings", "futures")


def _states(glance: Glance, prompt: str) -> dict[str, torch.Tensor]:
    """Coordinates ``[n, k]`` of the clips of one caption, by part. A clip without an event has its first one after
    the last frame."""
    xy, frames = glance.xy[:, :, 0].double(), glance.xy.shape[1]
    events = event_frames(glance, [prompt] * len(xy))
    first = torch.where(events.any(1), events.long().argmax(1), frames).double()
    step = xy[:, min(2, frames - 1)] - xy[:, 0]
    ends = torch.stack((glance.changed[:, -1], glance.there[:, -1]), 1).double()
    away = xy[:, -1] - xy[:, 0]
    return {"beginnings": torch.cat((xy[:, 0], step), 1), "futures": torch.cat((first[:, None], ends, away), 1)}


def diversity(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Spread of clips ``[B, F, 3, H, W]`` in [0, 1] within their captions, 1 = as diverse as the world.

    The value of a part is the mean over coordinates of ``min(1, sd / the world's sd)``. Captions with one clip are left
    out. Raises `DataError` when none has two, or for a prompt that is no caption.
    """
    strange = [prompt for prompt in prompts if not is_caption(prompt)]
    groups = {str(parse(p)): [k for k, other in enumerate(prompts) if other == p] for p in [*strange[:1], *prompts]}
    groups = {caption: rows for caption, rows in groups.items() if len(rows) > 1}
    if not groups:
        raise DataError(
            "diversity cannot be measured on these clips",
            why="it is a spread within a caption, and no caption has two clips",
            fix="sample several clips for each prompt",
        )
    values: dict[str, list[float]] = {part: [] for part in PARTS}
    for caption, rows in groups.items():
        numbers = generator(0, "event diversity", 0)
        world = render_clips([caption] * REFERENCE, clips.shape[1], generator=numbers)
        own = _states(look(world, [caption] * REFERENCE), caption)
        seen = _states(look(clips[rows], [caption] * len(rows)), caption)
        for part in PARTS:
            usual = own[part].std(0)
            share = (seen[part].std(0).cpu() / usual.clamp(min=1e-9)).clamp(max=1)
            values[part].append(float(share[usual > SMALLEST].mean()))
    out = {part: sum(v) / len(v) for part, v in values.items()}
    return {"diversity": sum(out.values()) / len(PARTS), **out}
