"""The codec interface and its factory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vidalign import registry
from vidalign.recipe.plugins import make


class Codec(nn.Module):
    """Encodes clips `[B, F, 3, H, W]` in [0, 1] to latents `[B, f, channels, H / downscale, W /
    downscale]` and back. A subclass is a plugin (kind ``codecs``) with a ``Config``, and is made with one.
    """

    @dataclass
    class Config:
        """No settings."""

    channels: int
    """Channels of a latent frame."""
    downscale: int = 1
    """Pixels per latent position, in each direction."""
    stride: int = 1
    """Pixel frames per latent frame after the first, which is one frame."""
    remembers: bool = False
    """Whether the frames of a latent depend on the latents before it."""

    @classmethod
    def described(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of a codec of the same sizes that reads no weights. Raises `UserError` where sizes are unknown."""
        return settings

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config if config is not None else self.Config()

    def encode(self, clips: Tensor) -> Tensor:
        """Clips in [0, 1] to latents."""
        raise NotImplementedError

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        """Latents to clips, clamped to [0, 1].

        history: all latents of the same videos before these `[B / group, f, C, h, w]`, candidates of a video
        adjacent; None = a video begins here. Its frames are not returned.
        """
        raise NotImplementedError

    def behind(self, history: Tensor) -> Callable[[Tensor], Tensor]:
        """A decoder of latents that follow `history`, see `decode`: any equal part of the candidates at a time."""
        return lambda latents: self.decode(latents, history)

    def decode_bytes(self, frame: Sequence[int], frames: int) -> int:
        """About how many bytes the decoding of one clip of `frames` latent frames ``(C, h, w)`` holds at its peak.
        Clips are decoded in slices by it."""
        return 4 * 4 * 3 * frames * frame[1] * frame[2] * self.downscale**2

    def stream(self) -> Callable[[Tensor], Tensor]:
        """A function that decodes one stream of latents chunk by chunk; for frame-wise codecs, `decode`."""
        return self.decode


class NoCodec(Codec):
    """For students without latents: what they make are the clips themselves."""

    channels = 3

    def encode(self, clips: Tensor) -> Tensor:
        return clips

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        return latents


def build_codec(config: dict[str, Any]) -> Codec:
    """The codec of a spec: `{"name": "rgb"}`, or `{"name": "frames" | "wan", ...}` with the settings of that class."""
    settings = {key: value for key, value in config.items() if key != "name"}
    codec: Codec = make("codecs", config.get("name", "rgb"), settings, "student.init.codec")
    return codec


def describe_codec(config: dict[str, Any]) -> dict[str, Any]:
    """The codec of a spec with random weights of the same sizes: for shapes and memory alone."""
    name = config.get("name", "rgb")
    settings = {key: value for key, value in config.items() if key != "name"}
    return {"name": name, **registry.get("codecs", name).described(settings)}
