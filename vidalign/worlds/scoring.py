"""What the scorers of the video worlds share: their view of attributes, and how scores are made of many clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Scores = dict[str, "torch.Tensor"]


@dataclass
class Attributes:
    """Soft judgements of every frame ``[B, F]``, of the worse object; `right` is their hard version."""

    colour: torch.Tensor
    count: torch.Tensor
    shape: torch.Tensor
    size: torch.Tensor
    presence: torch.Tensor
    permanence: torch.Tensor
    right: torch.Tensor


def in_slices(
    score: Callable[[torch.Tensor, Sequence[str]], Scores],
    clips: torch.Tensor,
    prompts: Sequence[str],
    names: Sequence[str],
    size: int,
) -> Scores:
    """The scores `names` ``[B]`` of clips ``[B, F, 3, H, W]``, `size` clips at a time; NaN for pixels that are not
    finite."""
    assert clips.ndim == 5 and len(clips) == len(prompts) > 0, "one caption for each clip"
    parts = []
    for start in range(0, len(clips), size):
        some = clips[start : start + size]
        scores = score(some, prompts[start : start + size])
        broken = ~some.flatten(1).isfinite().all(1)
        parts.append({name: torch.where(broken, torch.nan, scores[name]) for name in names})
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def by_quarter(score: Callable[[slice], Scores], frames: int, names: Sequence[str]) -> Scores:
    """The scores `names` ``[B, 4]`` of every quarter of long clips; score: those ``[B]`` of a range of frames."""
    length = frames // 4
    assert length > 0, "quarters need at least four frames"
    parts = [score(slice(n * length, (n + 1) * length)) for n in range(4)]
    return {name: torch.stack([part[name] for part in parts], 1) for name in names}
