"""The codec interface and its factory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vidalign.errors import UserError, nearest

if TYPE_CHECKING:
    from vidalign.students.video.spec import VideoStudentSpec

CODECS = ("rgb", "frames", "wan")


class Codec(nn.Module):
    """Encodes clips `[B, F, 3, H, W]` in [0, 1] to latents `[B, f, channels, H / downscale, W /
    downscale]` and back.
    """

    channels: int
    """Channels of a latent frame."""
    downscale: int
    """Pixels per latent position, in each direction."""
    remembers: bool = False
    """Whether the frames of a latent depend on the latents before it."""

    def encode(self, clips: Tensor) -> Tensor:
        """Clips in [0, 1] to latents."""
        raise NotImplementedError

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        """Latents to clips, clamped to [0, 1].

        history: all latents of the same videos before these `[B / group, f, C, h, w]`, candidates of a video
        adjacent; None = a video begins here. Its frames are not returned.
        """
        raise NotImplementedError

    def stream(self) -> Callable[[Tensor], Tensor]:
        """A function that decodes one stream of latents chunk by chunk; for frame-wise codecs, `decode`."""
        return self.decode


def build_codec(config: dict[str, Any]) -> Codec:
    """The codec of a spec: `{"name": "rgb"}`, or `{"name": "frames" | "wan", ...}` with the options of
    that class.
    """
    options = dict(config)
    name = options.pop("name", "rgb")
    if name == "rgb":
        from vidalign.codecs.rgb import RGBCodec

        return RGBCodec(**options)
    if name in ("frames", "wan"):
        from vidalign.codecs.autoencoder import FrameCodec, WanCodec

        return (FrameCodec if name == "frames" else WanCodec)(**options)
    raise UserError(
        f"unknown codec {name!r}",
        where="student.init.codec.name",
        why=f"valid: {', '.join(CODECS)}",
        fix=f"did you mean {nearest(name, CODECS)!r}?" if nearest(name, CODECS) else "",
    )


def latent_shape(spec: VideoStudentSpec) -> tuple[int, int, int]:
    """(C, H, W) of one latent frame of a student."""
    scale = int(spec.codec.get("downscale", 1 if spec.codec.get("name", "rgb") == "rgb" else 8))
    return (int(spec.transformer.get("in_channels", 16)), spec.height // scale, spec.width // scale)
