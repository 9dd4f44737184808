"""HPSv3: how much people prefer the frames of a clip for its prompt (Ma et al. 2025, arXiv 2508.03789).

Qwen2-VL-7B, trained as a whole, with a head that gives mean mu and spread sigma of the preference at one special token.
Each frame is judged as a picture. Score of a clip: the mean mu of its best 30 % of frames, as Astrolabe (2603.17051)
uses it; raw mu is about 9 to 11 for good pictures. That mean cannot see a clip that begins well and drifts, so the
minimum and the mean over the last quarter stand beside it.

What differs: frames are resized as tensors, which differs from PIL by a level of 255 here and there. By default 16
evenly spaced frames stand for all; the released code of Astrolabe judges every frame (`frames: 0`) and rounds the
number of the best ones down, we round it up as `pooled` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from vidalign.deferred import without_gradient
from vidalign.ranges import require
from vidalign.rewards.framewise import Pooling, evenly_spaced, pooled
from vidalign.rewards.pretrained import LOCAL, finite
from vidalign.rewards.reward_models.config import ModelConfig, check_files

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.rewards.reward_models.shared import Loaded


class HPSv3Reward:
    """Mean preference of the best 30 % of frames; minimum, last quarter and sigma are logged."""

    name: ClassVar[str] = "hps_v3"
    judges: ClassVar[str] = "clips"
    local_settings: ClassVar[tuple[str, ...]] = LOCAL

    @dataclass
    class Config(ModelConfig):
        path: str = "MizzenAI/HPSv3"
        """The published file `HPSv3.safetensors`, a folder that holds it, or a name on the hub."""
        backbone: str = "Qwen/Qwen2-VL-7B-Instruct"
        """Folder or hub name with the configuration and the processor of the model that it was trained on."""
        frames: int = 16
        """Frames judged of every clip, evenly spaced from the first to the last; 0 judges all."""
        pooling: Pooling = "top_share"
        """Of the mu of frames: the mean of the best `share`, their mean, the lowest, or that of the last quarter."""
        share: float = 0.3
        """Of the frames that top_share takes, the best ones."""
        min_pixels: int = 256 * 28 * 28
        """Smallest size of a frame in pixels. It was trained on pictures of this very size."""
        max_pixels: int = 256 * 28 * 28
        """Largest size of a frame in pixels; the shape stays."""
        batch: int = 16
        """Frames in one forward pass."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self, "frames", least=0)
            require(self, "share", above=0, most=1)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self._model: Loaded | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The files are there, or on the hub."""
        check_files(draft, cls.name, "path", "backbone")

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``hps_v3``, pooled as `Config.pooling` says, and for the log the other poolings and ``sigma``,
        the mean spread of the frames.

        clips: ``[B, F, 3, H, W]`` in [0, 1]. A clip with a value that is not finite gets NaN. Raises `UserError` when
        the checkpoint cannot be loaded.
        """
        assert clips.ndim == 5 and len(clips) == len(prompts), "one prompt a clip"
        shown = clips[:, evenly_spaced(clips.shape[1], self.config.frames)]
        pictures = shown.flatten(0, 1).unsqueeze(1)  # (B N, 1, 3, H, W)
        words = [prompt for prompt in prompts for _ in range(shown.shape[1])]
        outputs = self._loaded().outputs(pictures, words, self.config).view(*shown.shape[:2], 2)
        found = pooled(outputs[..., 0], self.config.share) | {"sigma": outputs[..., 1].exp().mean(1)}
        found = {name: values.where(finite(clips), torch.nan) for name, values in found.items()}
        return {self.name: found.pop(self.config.pooling), **found}

    def _loaded(self) -> Loaded:
        if self._model is None:
            from vidalign.rewards.reward_models.hps_v3 import load

            self._model = load(self.config)
        return self._model
