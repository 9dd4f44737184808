"""VideoReward: visual quality, motion quality and text alignment of a clip (VideoAlign, arXiv 2501.13918).

Qwen2-VL-2B with LoRA of rank 64 on the language linears reads the clip and one long question; a linear head is read at
three special tokens, one a dimension. Scores are normalised by the mean and standard deviation that the checkpoint's
`model_config.json` gives: about 0 for the videos that it was trained on. Motion quality is judged on grey frames, as
AR-CoPO (2603.17461) and Astrolabe (2603.17051) use it.

What differs: clips come as tensors instead of encoded files, and the LoRA is added to the weights, which in bf16 rounds
otherwise than the sum of two products. There is no "Overall": a sum of scores on three scales; objectives whiten each.
Knobs that matter: fps. A wrong frame rate of the clips, or another `fps`, turns good clips negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from vidalign.deferred import without_gradient
from vidalign.ranges import require
from vidalign.rewards.pretrained import LOCAL
from vidalign.rewards.reward_models.config import ModelConfig, check_files

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.rewards.reward_models.video_reward import VideoReward

Dimension = Literal["VQ", "MQ", "TA"]
DIMENSIONS: tuple[Dimension, ...] = ("VQ", "MQ", "TA")


@dataclass
class VideoRewardConfig(ModelConfig):
    """Which files, and how clips are shown."""

    path: str = "KlingTeam/VideoReward"
    """The published folder (`model_config.json` beside `checkpoint-N`), or a name on the hub."""
    backbone: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Folder or hub name with the configuration and the processor of the model that it was trained on."""
    fps: float = 2.0
    """Frames judged of every second of a clip, at least 4 frames. The published value is that of the training."""
    min_pixels: int = 128 * 28 * 28
    """Smallest size of a frame in pixels; smaller ones are enlarged."""
    max_pixels: int = 448 * 448
    """Largest size of a frame in pixels; larger ones are shrunk, the shape stays."""
    batch: int = 4
    """Clips in one forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "fps", above=0)


class VideoAlignReward:
    """One dimension of VideoReward, normalised: visual quality, motion quality on grey frames, or text alignment."""

    name: ClassVar[str] = "video_align"
    judges: ClassVar[str] = "clips"
    local_settings: ClassVar[tuple[str, ...]] = LOCAL

    @dataclass
    class Config(VideoRewardConfig):
        dimension: Dimension = "VQ"
        """VQ visual quality, MQ motion quality, TA text alignment. Several keys of a recipe may name one each: they
        share one copy of the model."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self._judge: VideoReward | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The files are there, or on the hub."""
        check_files(draft, cls.name, "path", "backbone")

    def score(self, clips: torch.Tensor, prompts: Sequence[str], fps: float) -> dict[str, torch.Tensor]:
        """``[B]`` under ``video_align`` for clips ``[B, F, 3, H, W]`` in [0, 1] with `fps` frames a second.

        A clip with a value that is not finite gets NaN. Raises `UserError` when the checkpoint cannot be loaded.
        """
        return {self.name: self.parts(clips, prompts, fps, [self.config.dimension])[self.config.dimension]}

    @without_gradient
    def parts(
        self, clips: torch.Tensor, prompts: Sequence[str], fps: float, dimensions: Sequence[Dimension] = DIMENSIONS
    ) -> dict[str, torch.Tensor]:
        """``[B]`` by dimension, as `score`."""
        return self._loaded().score(clips, prompts, fps, dimensions)

    def _loaded(self) -> VideoReward:
        if self._judge is None:
            from vidalign.rewards.reward_models.video_reward import VideoReward

            self._judge = VideoReward(self.config)
        return self._judge
