"""The discriminators as plugins (AFD, arXiv 2605.26105, and a small one): their settings, and how each is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidalign.ranges import require
from vidalign.rewards.discriminators.base import DiscriminatorConfig, DiscriminatorKind, Features

if TYPE_CHECKING:
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


class VisionLanguageKind(DiscriminatorKind):
    """LoRA and a scalar head on any vision-language model of transformers, which sees frames and the prompt."""

    @dataclass
    class Config(DiscriminatorConfig):
        path: str = ""
        """Folder or hub name of the backbone and its processor."""
        rank: int = 64
        """Rank of the low-rank update of every linear layer of the language model."""
        alpha: float = 128.0
        """The update is scaled by alpha / rank."""
        frames: int = 8
        """Frames of a clip that are shown, evenly spaced, first and last included."""
        question: str = "Does the video show this, with natural motion and physics: {prompt}"
        """What the backbone reads after the frames; {prompt} is replaced."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.path:
                raise ValueError("path must name the folder or the hub name of a vision-language model")
            require(self, "rank", least=1)
            if self.frames < 2:
                raise ValueError("frames must be at least 2: a single picture shows no motion")
            if "{prompt}" not in self.question:
                raise ValueError("question must contain {prompt}")

    @classmethod
    def from_recipe(cls, config: Any, spec: VideoStudentSpec, features: Features, seed: int) -> Discriminator:
        from vidalign.rewards.discriminators.vision_language import VisionLanguage

        return VisionLanguage.from_recipe(config, spec, features, seed)
