"""The discriminators as plugins (AFD, arXiv 2605.26105, and a small one): their settings, and how each is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vidalign.ranges import require
from vidalign.rewards.discriminators.base import DiscriminatorConfig, DiscriminatorKind, Features
from vidalign.rewards.reward_models.config import check_paths

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.rewards.discriminators.network import Discriminator
    from vidalign.students.video import VideoStudentSpec


class SpatioTemporalKind(DiscriminatorKind):
    """Convolutions over frames and their differences, then attention to all cells and the prompt; 0.24 M parameters."""

    @dataclass
    class Config(DiscriminatorConfig):
        learning_rate: float = 3e-4
        """Constant learning rate; all weights are trained from scratch."""
        width: int = 64
        """Channels of a cell; a multiple of 8."""
        layers: int = 2
        """Transformer layers."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.width < 8 or self.width % 8:
                raise ValueError("width must be a multiple of 8")
            require(self, "layers", least=1)

    @classmethod
    def from_recipe(cls, config: Any, spec: VideoStudentSpec, features: Features, seed: int) -> Discriminator:
        from vidalign.rewards.discriminators.spatiotemporal import SpatioTemporal

        return SpatioTemporal.from_recipe(config, spec, features, seed)


NEW: dict[str, Any] = {
    "rank": 64,
    "alpha": 128.0,
    "frames": 8,
    "question": "Does the video show this, with natural motion and physics: {prompt}",
}
"""Settings of a new head, and what null stands for."""
RM_HEAD: dict[str, Any] = {
    "backbone": "Qwen/Qwen2-VL-2B-Instruct",
    "fps": 2.0,
    "min_pixels": 128 * 28 * 28,
    "max_pixels": 448 * 448,
}
"""The same of VideoReward's head."""


class VisionLanguageKind(DiscriminatorKind):
    """LoRA and a head on a vision-language model, which sees frames and the prompt: new ones, or those of VideoReward
    [arXiv 2501.13918]."""

    differentiable = False

    @dataclass
    class Config(DiscriminatorConfig):
        path: str = ""
        """Folder or hub name of the backbone and its processor; with `head: rm_head` the published folder of
        VideoReward, `KlingTeam/VideoReward`."""
        head: Literal["new", "rm_head"] = "new"
        """new: fresh LoRA and a fresh head without bias on any vision-language model. rm_head: the LoRA and the head of
        VideoReward, as AFD begins."""
        rank: int | None = None
        """Rank of the new low-rank update of every linear layer of the language model; null = 64."""
        alpha: float | None = None
        """The new update is scaled by alpha / rank; null = 128."""
        frames: int | None = None
        """Frames of a clip that a new head is shown, evenly spaced, first and last included; null = 8."""
        question: str | None = None
        """What the backbone of a new head reads after the frames; {prompt} is replaced. null = one of ours."""
        backbone: str | None = None
        """With rm_head: folder or hub name with the configuration and the processor that VideoReward was trained on;
        null = Qwen/Qwen2-VL-2B-Instruct."""
        fps: float | None = None
        """With rm_head: frames shown of every second of a clip, at least 4; null = 2."""
        min_pixels: int | None = None
        """With rm_head: smallest size of a frame in pixels; null = 128 * 28 * 28."""
        max_pixels: int | None = None
        """With rm_head: largest size of a frame in pixels; null = 448 * 448."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.path:
                raise ValueError("path must name the folder or the hub name of a vision-language model")
            own, others = (NEW, RM_HEAD) if self.head == "new" else (RM_HEAD, NEW)
            for name in others:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} must be null: head {self.head!r} has no such setting")
            for name, usual in own.items():
                setattr(self, name, usual if getattr(self, name) is None else getattr(self, name))
            require(self, "rank", "min_pixels", least=1)
            require(self, "fps", above=0)
            require(self, "max_pixels", least=self.min_pixels or 1)
            if self.frames is not None and self.frames < 2:
                raise ValueError("frames must be at least 2: a single picture shows no motion")
            if self.question is not None and "{prompt}" not in self.question:
                raise ValueError("question must contain {prompt}")

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The files are there, or on the hub."""
        super().check(draft)
        if draft.recipe.discriminator is not None and draft.recipe.discriminator.config is not None:
            check_paths(draft, "discriminator", draft.recipe.discriminator.config, "path", "backbone")

    @classmethod
    def from_recipe(cls, config: Any, spec: VideoStudentSpec, features: Features, seed: int) -> Discriminator:
        if config.head == "rm_head":
            from vidalign.rewards.discriminators.video_reward import VideoRewardDiscriminator

            return VideoRewardDiscriminator.from_recipe(config, spec, features, seed)
        from vidalign.rewards.discriminators.vision_language import VisionLanguage

        return VisionLanguage.from_recipe(config, spec, features, seed)
