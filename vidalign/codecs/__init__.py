"""Codecs: between clips `[B, F, 3, H, W]` in [0, 1] and latents `[B, F, C, H, W]`."""

from vidalign.codecs.base import Codec, build_codec
from vidalign.codecs.rgb import RGBCodec

__all__ = ["Codec", "RGBCodec", "build_codec"]
