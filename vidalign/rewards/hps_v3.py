"""HPSv3: how much people prefer the frames of a clip for its prompt (Ma et al. 2025, arXiv 2508.03789).

Qwen2-VL-7B, trained as a whole, with a head that gives mean mu and spread sigma of the preference at one special token.
Each frame is judged as a picture. Score of a clip: the mean mu of its best 30 % of frames, as Astrolabe (2603.17051)
uses it; raw mu is about 9 to 11 for good pictures. That mean cannot see a clip that begins well and drifts, so the
minimum and the mean over the last quarter stand beside it.

What differs: frames are resized as tensors, which differs from PIL by a level of 255 here and there. By default 16
evenly spaced frames stand for all; the released code of Astrolabe judges every frame (`frames: 0`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from vidalign.deferred import without_gradient
from vidalign.ranges import require
from vidalign.rewards.clip_score import evenly_spaced
from vidalign.rewards.reward_models.config import ModelConfig, check_files

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.rewards.reward_models.shared import Loaded


class HPSv3Reward:
    """Mean preference of the best 30 % of frames; minimum, last quarter and sigma are logged."""

    name: ClassVar[str] = "hps_v3"
    judges: ClassVar[str] = "clips"

    @dataclass
    class Config(ModelConfig):
        path: str = "MizzenAI/HPSv3"
        """The published file `HPSv3.safetensors`, a folder that holds it, or a name on the hub."""
        backbone: str = "Qwen/Qwen2-VL-7B-Instruct"
        """Folder or hub name with the configuration and the processor of the model that it was trained on."""
        frames: int = 16
        """Frames judged of every clip, evenly spaced from the first to the last; 0 judges all."""
        top_share: float = 0.3
        """Share of the judged frames, the best ones, whose mean is the score; one frame at least."""
        min_pixels: int = 256 * 28 * 28
        """Smallest size of a frame in pixels. It was trained on pictures of this very size."""
        max_pixels: int = 256 * 28 * 28
        """Largest size of a frame in pixels; the shape stays."""
        batch: int = 16
        """Frames in one forward pass."""

        def __post_init__(self) -> None:
            super().__post_init__()
            require(self, "frames", least=0)
            require(self, "top_share", above=0, most=1)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self._model: Loaded | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The files are there, or on the hub."""
        check_files(draft, cls.name, "path", "backbone")

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``hps_v3`` and, for the log, ``min``, ``last_quarter`` and ``sigma``, see `parts`."""
        parts = self.parts(clips, prompts)
        return {self.name: parts.pop("top_share"), **parts}

    @without_gradient
    def parts(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``top_share``, ``min``, ``last_quarter`` and ``sigma``, the mean spread of the frames.

        clips: ``[B, F, 3, H, W]`` in [0, 1]. A clip with a value that is not finite gets NaN. Raises `UserError` when
        the checkpoint cannot be loaded.
        """
        from vidalign.rewards.reward_models.shared import finite

        assert clips.ndim == 5 and len(clips) == len(prompts), "one prompt a clip"
        shown = clips[:, evenly_spaced(clips.shape[1], self.config.frames)]
        mu, log_sigma = self._outputs(shown, prompts).unbind(-1)  # (B, N) each
        best, quarter = max(1, int(mu.shape[1] * self.config.top_share)), -(-mu.shape[1] // 4)
        found = {
            "top_share": mu.topk(best).values.mean(1),
            "min": mu.amin(1),
            "last_quarter": mu[:, -quarter:].mean(1),
            "sigma": log_sigma.exp().mean(1),
        }
        good = finite(clips).cpu()
        return {name: values.where(good, torch.nan) for name, values in found.items()}

    def _outputs(self, clips: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """What the head says of every frame ``[B, N, 2]`` in fp32 on the CPU: mu and log sigma."""
        model, config = self._loaded(), self.config
        pictures = clips.nan_to_num().flatten(0, 1).unsqueeze(1)  # (B N, 1, 3, H, W)
        words = [prompt for prompt in prompts for _ in range(clips.shape[1])]
        parts = []
        for start in range(0, len(words), config.batch):
            part = slice(start, start + config.batch)
            batch = model.reader.read(pictures[part], words[part], (config.min_pixels, config.max_pixels))
            parts.append(model.network(batch.to(model.network.device)).squeeze(1).float().cpu())
        outputs: torch.Tensor = torch.cat(parts).unflatten(0, clips.shape[:2])
        return outputs

    def _loaded(self) -> Loaded:
        if self._model is None:
            from vidalign.rewards.reward_models.hps_v3 import load

            self._model = load(self.config)
        return self._model
