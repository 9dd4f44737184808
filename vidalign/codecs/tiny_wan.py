"""The tiny autoencoder of Wan as a decoder: much less memory and time than Wan's own, for clips that are scored.

The published files (github.com/madebyollin/taehv: ``taew2_1`` for Wan2.1, ``taew2_2`` for Wan2.2-TI2V-5B) hold an
encoder too, which is not read: latents are those of Wan's own. A latent becomes four frames by two doublings in time.
Of the first latent the last frame alone is kept. Blocks remember the frame before, so a stream of latents is decoded
one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from vidalign.codecs.base import Codec
from vidalign.errors import UserError, first_line

WIDTHS = (256, 128, 64, 64)
MAPS = 2.5
"""Feature maps of four frames at the decoder's full size, `WIDTHS[2]` wide, that it holds at its peak (traced by
tests/unit/test_plan.py)."""

Memory = list[Tensor | None]
"""The last frame that each block saw ``[N, 1, C, H, W]``; None = no frame yet."""


class TinyWanDecoder(Codec):
    """Decodes latents of Wan by a file of the tiny autoencoder; it encodes nothing.

    Raises `UserError` for a file that is not there, that cannot be read, or whose tensors are not those of the decoder.
    """

    @dataclass
    class Config:
        path: str = ""
        """File: ``taew2_1`` or ``taew2_2``, as .pth or .safetensors."""

    stride = 4
    remembers = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        weights = _read(Path(config.path))
        self.channels, self.downscale = _sizes(weights)
        self.patch = self.downscale // 8
        self.decoder = _layers(self.channels, self.patch)
        for number, layer in enumerate(self.decoder):
            if isinstance(layer, Grow):  # files for other rates hold more frames, of which the last are ours
                name, rows = f"decoder.{number}.conv.weight", layer.conv.out_channels
                weights[name] = weights[name][-rows:]
        own = self.state_dict()
        wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
        if wrong or weights.keys() - own.keys():
            raise _refused(
                config.path, f"of its tensors {wrong[0] if wrong else sorted(weights.keys() - own.keys())[0]}"
            )
        self.load_state_dict({name: weights[name].to(x.device) for name, x in own.items()})

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        return self.stream()(latents) if history is None else self.behind(history)(latents)

    def behind(self, history: Tensor) -> Callable[[Tensor], Tensor]:
        if not history.shape[1]:
            return self.decode
        past: Memory = [None] * len(self.decoder)
        with torch.no_grad():
            self._frames(history, past)

        def decode(latents: Tensor) -> Tensor:
            group = len(latents) // len(history)
            return self._frames(latents, [None if x is None else x.repeat_interleave(group, 0) for x in past])

        return decode

    def stream(self) -> Callable[[Tensor], Tensor]:
        past, begun = list[Tensor | None]([None] * len(self.decoder)), False

        def decode_chunk(latents: Tensor) -> Tensor:
            nonlocal begun
            clips = self._frames(latents, past)
            clips, begun = clips if begun else clips[:, self.stride - 1 :], True
            return clips

        return decode_chunk

    def decode_bytes(self, frame: Sequence[int], frames: int) -> int:
        pixels, size = self.stride * frame[1] * frame[2] * self.downscale**2, self._dtype.itemsize
        return int(pixels * size * (MAPS * WIDTHS[2] / self.patch**2 + 3 * frames))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _frames(self, latents: Tensor, past: Memory) -> Tensor:
        """Four frames of every latent ``[N, F, C, h, w]`` behind `past`, which takes up the last of them."""
        n, count, _, height, width = latents.shape
        clips = latents.new_empty(n, self.stride * count, 3, height * self.downscale, width * self.downscale)
        for at, latent in enumerate(latents.to(self._dtype).split(1, 1)):
            clips[:, self.stride * at : self.stride * (at + 1)] = self._one(latent, past)
        return clips

    def _one(self, latent: Tensor, past: Memory) -> Tensor:
        x = latent.flatten(0, 1)
        for number, layer in enumerate(self.decoder):
            if isinstance(layer, Block):
                frames = x.unflatten(0, (len(latent), -1))
                before = past[number]
                first = torch.zeros_like(frames[:, :1]) if before is None else before
                past[number] = frames[:, -1:]
                x = layer(x, torch.cat([first, frames[:, :-1]], 1).flatten(0, 1))
            else:
                x = layer(x)
        clips: Tensor = functional.pixel_shuffle(x.clamp(0, 1), self.patch).unflatten(0, (len(latent), -1))
        return clips


class Block(nn.Module):
    """Three convolutions over a frame and the one before it, around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [_conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """Frames ``[N, C, H, W]`` and those before them."""
        return functional.relu(self.conv(torch.cat([x, past], 1)) + x)


class Grow(nn.Module):
    """`times` frames of each frame."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [times N, C, H, W]``, the frames of one adjacent."""
        grown: Tensor = self.conv(x)
        return grown.reshape(-1, *x.shape[1:])


class Clamp(nn.Module):
    """Latents softly kept within 3 of 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Like x."""
        return torch.tanh(x / 3) * 3


def _conv(before: int, after: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=bias)


def _layers(channels: int, patch: int) -> nn.Sequential:
    """The decoder, its layers numbered as in the published files."""
    a, b, c, d = WIDTHS
    layers: list[nn.Module] = [Clamp(), _conv(channels, a), nn.ReLU()]
    for width, after, times in ((a, b, 1), (b, c, 2), (c, d, 2)):
        layers += [Block(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), Grow(width, times), _conv(width, after, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), _conv(d, 3 * patch**2))


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of the decoder."""
    from safetensors.torch import load_file

    try:
        safe = path.suffix == ".safetensors"
        tensors: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise _refused(str(path), first_line(error)) from error
    own = {name: x for name, x in tensors.items() if name.startswith("decoder.")} if isinstance(tensors, dict) else {}
    if not {"decoder.1.weight", "decoder.22.bias"} <= own.keys():
        raise _refused(str(path), "it does not hold the tensors of the decoder")
    return own


def _sizes(weights: dict[str, Tensor]) -> tuple[int, int]:
    """Channels of the latents, and pixels of each in every direction."""
    return weights["decoder.1.weight"].shape[1], 8 * int((len(weights["decoder.22.bias"]) // 3) ** 0.5)


def latents_of(path: str) -> tuple[int, int]:
    """What latents a file decodes: their channels, and pixels of each in every direction. Raises `UserError`."""
    return _sizes(_read(Path(path)))


def _refused(path: str, why: str) -> UserError:
    fix = "name taew2_1.pth (16 latent channels) or taew2_2.pth (48), or leave it out"
    return UserError("the tiny decoder cannot be used", where=f"student.decoder: {path}", why=why, fix=fix)
