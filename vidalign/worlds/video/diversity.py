"""Diversity of clips: the spread of their initial states within a caption against the world's own spread.

A student that draws one clip per caption can satisfy every judge of single clips; its diversity is 0. The
state of a clip is where its objects start and how far they get, as the auditor tracks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from vidalign.errors import DataError
from vidalign.worlds.video.auditor import look
from vidalign.worlds.video.captions import parse
from vidalign.worlds.video.scenes import sample

REFERENCE = 128
"""Scenes drawn to estimate the world's own spread of a group."""
SMALLEST = 0.3
"""Spread of the world, pixels, below which a coordinate says nothing (the x travelled by a fall)."""


def _states(track: torch.Tensor, objects: int) -> torch.Tensor:
    """Start and displacement of the objects of clips of one motion, ``[n, F, 2, 2]`` -> ``[n, 4 or 8]``."""
    start, end = track[:, 0, :objects], track[:, -1, :objects]
    return torch.cat((start, end - start), -1).flatten(1).double()


def diversity(
    clips: torch.Tensor,
    prompts: Sequence[str],
    *,
    by: Literal["caption", "motion"] = "caption",
    speeds: str = "train",
    seed: int = 0,
) -> dict[str, float]:
    """Spread of clips ``[B, F, 3, H, W]`` in [0, 1], 1 = as diverse as the world, per motion and overall.

    Clips are grouped by caption (or by motion and size); groups of one clip are left out. The value of a
    group is the mean over state coordinates of ``min(1, std / world std)``. Raises `DataError` when no group
    has two clips.
    """
    specs = [parse(prompt) for prompt in prompts]
    groups: dict[str, list[int]] = {}
    for index, spec in enumerate(specs):
        groups.setdefault(str(spec) if by == "caption" else f"{spec.size} {spec.motion}", []).append(index)
    groups = {key: rows for key, rows in groups.items() if len(rows) > 1}
    if not groups:
        raise DataError(
            "diversity cannot be measured on these clips",
            why=f"it is a spread within a {by}, and no {by} has two clips",
            fix="sample several clips for each prompt, or use by='motion'",
        )
    track = look(clips, prompts).xy
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, list[float]] = {}
    for rows in groups.values():
        spec = specs[rows[0]]
        captions = [prompts[rows[k % len(rows)]] for k in range(REFERENCE)]
        world = sample(captions, clips.shape[1], generator=generator, speeds=speeds).position
        own = _states(world, len(spec.objects)).std(0)
        seen = _states(track[rows].cpu(), len(spec.objects)).std(0)
        value = (seen / own.clamp(min=1e-9)).clamp(max=1)[own > SMALLEST].mean()
        values.setdefault(spec.motion, []).append(float(value))
    out = {motion: sum(v) / len(v) for motion, v in values.items()}
    return {"diversity": sum(map(sum, values.values())) / len(groups), **out}
