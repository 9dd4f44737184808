"""No autoencoder: pixels are the latents, moved to [-1, 1]. For tiny worlds with x0 prediction."""

from __future__ import annotations

from torch import Tensor

from vidalign.codecs.base import Codec


class RGBCodec(Codec):
    """Affine map between [0, 1] and [-1, 1]."""

    channels = 3
    downscale = 1

    def encode(self, clips: Tensor) -> Tensor:
        return clips * 2 - 1

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        return ((latents + 1) / 2).clamp(0, 1)
