"""What the rewards of every world share: views of one pass of its scorer.

The scorer runs once for a batch, whichever of the rewards is called first. A prompt that is no caption of the world has
no known answer. Its clip is a failed item (NaN), and the first such prompt is warned about.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidalign.deferred import without_gradient

Score = Callable[["torch.Tensor", Sequence[str]], dict[str, "torch.Tensor"]]


class LastBatch:
    """Remembers the scores of the last batch for as long as its clips are alive and unchanged.

    world: what messages call it; score: its scorer; names: of the scores; is_caption: whether a prompt can be scored.
    """

    def __init__(self, world: str, score: Score, names: Sequence[str], is_caption: Callable[[str], bool]) -> None:
        self.world, self.score, self.names, self.is_caption = world, score, names, is_caption
        self._lock = threading.Lock()
        self._clips: weakref.ref[torch.Tensor] | None = None
        self._key: tuple[int, tuple[str, ...]] | None = None
        self._scores: dict[str, torch.Tensor] = {}

    def __call__(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Scores ``[B]`` by name of clips ``[B, F, 3, H, W]`` in [0, 1]; NaN for prompts that are no captions."""
        version = 0 if clips.is_inference() else clips._version
        key = (version, tuple(prompts))
        with self._lock:
            if self._clips is None or self._clips() is not clips or self._key != key:
                self._scores = self._judged(clips, prompts)
                self._clips, self._key = weakref.ref(clips), key
            return self._scores

    def _judged(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        rows = [k for k, prompt in enumerate(prompts) if self.is_caption(prompt)]
        if len(rows) == len(prompts):
            return self.score(clips, prompts)
        strange = next(prompt for prompt in prompts if not self.is_caption(prompt))
        warnings.warn(f"{strange!r} is no caption of {self.world}: its clips are not scored", stacklevel=4)
        out = {name: clips.new_full((len(prompts),), torch.nan) for name in self.names}
        if rows:
            for name, values in self.score(clips[rows], [prompts[k] for k in rows]).items():
                out[name][rows] = values
        return out


class WorldReward:
    """One score of a world's scorer. A subclass gives its `name`, the batch it shares, and `can_score`."""

    name: ClassVar[str]
    judges: ClassVar[str] = "clips"
    batch: ClassVar[LastBatch]

    @dataclass
    class Config:
        """The rewards of a world have no settings."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Scores ``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1] under `name`; NaN for a failed
        item."""
        return {self.name: type(self).batch(clips, prompts)[self.name].clone()}
