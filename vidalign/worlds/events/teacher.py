"""The event world's ground truth as a black-box teacher: a caption in, a finished clip out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidalign.worlds.events.renderer import clips_of
from vidalign.worlds.video.teacher import WorldTeacher


class EventTeacher(WorldTeacher):
    """Renders a fresh window of an endless scene for every prompt. Offers ``clips``."""

    def clips(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """One clip per prompt, ``[B, F, 3, H, W]`` in [0, 1]; raises `DataError` for a prompt that is no caption."""
        return clips_of(prompts, self.frames, generators)
