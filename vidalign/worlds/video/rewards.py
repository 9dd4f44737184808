"""Rewards of the embedded world: three views of one pass of its scorer (`vidalign.worlds.video.scorer`).

The scorer runs once for a batch, whichever of the three is called first. A prompt that is no caption of the world has
no known answer. Its clip is a failed item (NaN), and the first such prompt is warned about.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidalign.deferred import without_gradient
from vidalign.worlds.video.captions import is_caption
from vidalign.worlds.video.scorer import SCORES, score


def _scores(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    rows = [k for k, prompt in enumerate(prompts) if is_caption(prompt)]
    if len(rows) == len(prompts):
        return score(clips, prompts)
    strange = next(prompt for prompt in prompts if not is_caption(prompt))
    warnings.warn(f"{strange!r} is no caption of the embedded world: its clips are not scored", stacklevel=4)
    out = {name: clips.new_full((len(prompts),), torch.nan) for name in SCORES}
    if rows:
        for name, values in score(clips[rows], [prompts[k] for k in rows]).items():
            out[name][rows] = values
    return out


class _LastBatch:
    """Remembers the scores of the last batch for as long as its clips are alive and unchanged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clips: weakref.ref[torch.Tensor] | None = None
        self._key: tuple[int, tuple[str, ...]] | None = None
        self._scores: dict[str, torch.Tensor] = {}

    def __call__(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        version = 0 if clips.is_inference() else clips._version
        key = (version, tuple(prompts))
        with self._lock:
            if self._clips is None or self._clips() is not clips or self._key != key:
                self._scores = _scores(clips, prompts)
                self._clips, self._key = weakref.ref(clips), key
            return self._scores


_last_batch = _LastBatch()


class _WorldReward:
    name: ClassVar[str]
    judges: ClassVar[str] = "clips"
    can_score = staticmethod(is_caption)

    @dataclass
    class Config:
        """The world's rewards have no settings."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Scores ``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1] under `name`; NaN for a failed
        item."""
        return {self.name: _last_batch(clips, prompts)[self.name].clone()}


class TextAlignment(_WorldReward):
    """Colour, count, shape, size and motion as the caption says."""

    name = "text_alignment"


class MotionQuality(_WorldReward):
    """The captioned law of motion, kept in every frame by objects that stay."""

    name = "motion_quality"


class VisualQuality(_WorldReward):
    """Nearness to what the world can render, whatever the caption."""

    name = "visual_quality"
