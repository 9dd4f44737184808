"""Codecs over diffusers autoencoders.

Frame by frame: AutoencoderTiny and AutoencoderKL. Causal video: AutoencoderKLWan, with a streaming decoder
that equals the full decode exactly.

A config names either `path` (folder or hub name, with `subfolder`) or `config` (random weights, to train).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vidalign.codecs.base import Codec
from vidalign.errors import UserError, first_line
from vidalign.reading import parse_json

WIDE = {False: 13, True: 21}
"""Feature maps of four frames at the decoder's full size and width that Wan's decoder holds at its peak, its cache
included (traced by tests/unit/test_plan.py); True: with the shortcuts of Wan2.2."""
WAN22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
"""Sizes of the autoencoder of Wan2.2-TI2V-5B, which shrinks by 16; those of Wan2.1 are the defaults of diffusers."""
MAPS = 4
"""Feature maps of a frame at full size that a frame-wise decoder holds."""


@dataclass
class AutoencoderConfig:
    """Which autoencoder: `path`, or `config` for one with random weights."""

    path: str = ""
    """Folder or hub name."""
    subfolder: str = ""
    """Folder of the autoencoder below it."""
    config: dict[str, Any] | None = None
    """Settings of the class in diffusers."""
    downscale: int = 8
    """Pixels per latent position, stated so that shapes are known without building it."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What it computes in, whatever the precision of the engine; bf16 halves the memory of decoding."""


def _autoencoder(kind: str, config: AutoencoderConfig) -> Any:
    """A diffusers autoencoder of class `kind` in its dtype."""
    import diffusers

    cls, dtype = getattr(diffusers, kind), torch.bfloat16 if config.dtype == "bf16" else torch.float32
    if bool(config.path) == bool(config.config):
        raise UserError("a codec needs either path or config", where="student.init.codec")
    if config.config:
        made = cls(**config.config)
        return made if dtype == torch.float32 else nn.Module.to(made, dtype)
    try:
        return cls.from_pretrained(config.path, subfolder=config.subfolder or None, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise UserError("the autoencoder cannot be loaded", where=config.path, why=why) from error


def _described(settings: dict[str, Any], usual: dict[str, Any] | None = None) -> dict[str, Any]:
    """Settings with ``config`` in the place of ``path``: that of its folder, or else the `usual` one."""
    if settings.get("config"):
        return settings
    file = Path(settings.get("path", ""), settings.get("subfolder", ""), "config.json")
    if not file.is_file() and usual is None:
        raise UserError("the sizes of the autoencoder are unknown", where=str(file), fix="name a folder on this disk")
    written = parse_json(file.read_text(encoding="utf-8")) if file.is_file() else usual
    config = {key: value for key, value in dict(written or {}).items() if not key.startswith("_")}
    return {**settings, "path": "", "subfolder": "", "config": config}


class FrameCodec(Codec):
    """A frame-wise autoencoder: one latent frame per pixel frame."""

    @dataclass
    class Config(AutoencoderConfig):
        kind: str = "tiny"
        """tiny (`AutoencoderTiny`) or kl (`AutoencoderKL`, encoded to the mode)."""
        slice_frames: int = 0
        """Frames per call of the network; 0 = all at once."""

    @classmethod
    def described(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return _described(settings)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        classes, kind = {"tiny": "AutoencoderTiny", "kl": "AutoencoderKL"}, config.kind
        if kind not in classes:
            raise UserError(f"unknown kind {kind!r}", where="student.init.codec.kind", fix="tiny or kl")
        self.kind = kind
        self.slice_frames = config.slice_frames
        self.model = _autoencoder(classes[kind], config)
        settings = self.model.config
        self.channels = settings.latent_channels
        blocks = settings.encoder_block_out_channels if kind == "tiny" else settings.block_out_channels
        self.width = int(blocks[0])
        self.downscale = 2 ** (len(blocks) - 1)
        self.scale = float(settings.scaling_factor)
        self.shift = float(getattr(settings, "shift_factor", None) or 0.0)
        check_downscale(config.downscale, self.downscale)

    def encode(self, clips: Tensor) -> Tensor:
        return self._sliced(self._encode_frames, clips)

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        return self._sliced(self._decode_frames, latents)

    def decode_bytes(self, frame: Sequence[int], frames: int) -> int:
        pixels, size = frame[1] * frame[2] * self.downscale**2, self.model.dtype.itemsize
        at_once = min(frames, self.slice_frames or frames)
        return int(pixels * size * (at_once * MAPS * self.width + 3 * 3 * frames))

    def _encode_frames(self, frames: Tensor) -> Tensor:
        out = self.model.encode(frames * 2 - 1)
        raw = out.latents if self.kind == "tiny" else out.latent_dist.mode()
        latents: Tensor = (raw - self.shift) * self.scale
        return latents

    def _decode_frames(self, latents: Tensor) -> Tensor:
        return to_unit(self.model.decode(latents / self.scale + self.shift).sample)

    def _sliced(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        frames = x.flatten(0, 1).to(self.model.dtype)
        parts = frames.split(self.slice_frames or len(frames))
        out: Tensor = torch.cat([fn(part) for part in parts]).unflatten(0, x.shape[:2])
        return out.to(x.dtype)


class WanCodec(Codec):
    """`AutoencoderKLWan`: the first latent frame is one pixel frame, every other one is four.

    Latents are whitened with the model's own mean and std, as the Wan pipelines do.
    """

    remembers = True
    stride = 4

    @dataclass
    class Config(AutoencoderConfig):
        """As every autoencoder."""

    @classmethod
    def described(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return _described(settings, WAN22 if settings.get("downscale") == 16 else {"z_dim": 16})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.model = _autoencoder("AutoencoderKLWan", config)
        self.channels = self.model.config.z_dim
        self.downscale = int(self.model.spatial_compression_ratio)
        check_downscale(config.downscale, self.downscale)

    def encode(self, clips: Tensor) -> Tensor:
        video = (clips * 2 - 1).transpose(1, 2).to(self.model.dtype)
        mode = self.model.encode(video).latent_dist.mode()
        mean, std = self._statistics(mode)
        latents: Tensor = ((mode - mean) / std).transpose(1, 2)
        return latents.to(clips.dtype)

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        if history is None:
            return self._decode_chunk(latents, self._empty_cache(), first=True)
        return self.behind(history)(latents)

    def behind(self, history: Tensor) -> Callable[[Tensor], Tensor]:
        past = self._empty_cache()
        if not history.shape[1]:
            return self.decode
        with torch.no_grad():
            self._decode_chunk(history, past, first=True)

        def decode(latents: Tensor) -> Tensor:
            group = len(latents) // len(history)
            cache = [x.repeat_interleave(group, 0) if isinstance(x, Tensor) else x for x in past]
            return self._decode_chunk(latents, cache, first=False)

        return decode

    def decode_bytes(self, frame: Sequence[int], frames: int) -> int:
        config, size = self.model.config, self.model.dtype.itemsize
        patch, width = config.patch_size or 1, config.decoder_base_dim or config.base_dim
        pixels = 4 * frame[1] * frame[2] * self.downscale**2
        return int(pixels * size * (WIDE[bool(config.is_residual)] * width / patch**2 + 3 * frames))

    def stream(self) -> Callable[[Tensor], Tensor]:
        """A decoder with a feature cache of its own. Chunk after chunk it returns what one call on all latents would:
        9, 12, 12, ... frames for chunks of 3 latents."""
        cache, started = self._empty_cache(), False

        def decode_chunk(latents: Tensor) -> Tensor:
            nonlocal started
            clips = self._decode_chunk(latents, cache, first=not started)
            started = True
            return clips

        return decode_chunk

    def _empty_cache(self) -> list[Tensor | str | None]:
        return [None] * self.model._cached_conv_counts["decoder"]

    def _decode_chunk(self, latents: Tensor, cache: list[Tensor | str | None], *, first: bool) -> Tensor:
        """Clips of latents behind the features in `cache`, which takes up theirs; first: a video begins."""
        clips = []
        for at, latent in enumerate(self._raw(latents).split(1, 2)):
            options = {"first_chunk": True} if first and at == 0 else {}
            clips.append(self.model.decoder(latent, feat_cache=cache, feat_idx=[0], **options))
        return to_unit(self._pixels(torch.cat(clips, 2)).transpose(1, 2).to(latents.dtype))

    def _raw(self, latents: Tensor) -> Tensor:
        x = latents.transpose(1, 2).to(self.model.dtype)
        mean, std = self._statistics(x)
        features: Tensor = self.model.post_quant_conv(x * std + mean)
        return features

    def _pixels(self, video: Tensor) -> Tensor:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        size = self.model.config.patch_size
        return video if size is None else unpatchify(video, patch_size=size)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        mean, std = (like.new_tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
        return mean, std


def to_unit(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped."""
    return ((x + 1) / 2).clamp(0, 1)


def check_downscale(stated: int, actual: int) -> None:
    """The spec states the factor so that shapes are known without building the codec; it must be right."""
    if stated != actual:
        raise UserError(
            f"the autoencoder shrinks by {actual}, the spec says {stated}", where="student.init.codec.downscale"
        )
