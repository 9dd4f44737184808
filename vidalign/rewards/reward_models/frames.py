"""Frames of clips as the patches that Qwen2-VL reads: which of them, how large, in which order.

The rules are those of the public preprocessing that the reward models were trained with. `VideoReward` samples by
seconds: a clip of F frames at f frames a second is judged on ``F / f * fps`` of them, rounded to an even number, at
least 4. So a wrong frame rate shows another video. Sides are multiples of a patch of 28 pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEWEST, MOST = 4, 768
"""Frames of a clip that is sampled by seconds."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


def by_seconds(length: int, rate: float, fps: float) -> list[int]:
    """The frames that show a clip of `length` frames at `rate` frames a second with `fps` frames a second, an even
    number of them and evenly spaced from the first to the last; a single frame is shown twice."""
    if length < 2:
        return [0, 0]
    wanted = min(max(length / rate * fps, FEWEST), min(MOST, length) // 2 * 2)
    count = min(round(wanted / 2) * 2, length)
    return [int(place) for place in torch.linspace(0, length - 1, count).round().tolist()]


def fitted_size(height: int, width: int, pixels: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width near the given ones, as multiples of `side`; pixels: the fewest and the most, as far as that
    can be."""
    least, most = pixels
    rows, columns = (max(side, round(length / side) * side) for length in (height, width))
    scale = math.sqrt(height * width / (most if rows * columns > most else least))
    if rows * columns > most:
        rows, columns = (max(side, math.floor(length / scale / side) * side) for length in (height, width))
    elif rows * columns < least:
        rows, columns = (math.ceil(length / scale / side) * side for length in (height, width))
    return rows, columns


def in_bytes(frames: Tensor, size: tuple[int, int], grey: bool = False) -> Tensor:
    """Frames ``[..., 3, H, W]`` in [0, 1] as fp32 levels 0..255 of another size, rounded before and after resizing.

    grey: all channels are the luminance.
    """
    levels = (frames.detach().float().clamp(0, 1) * 255).round()
    if grey:
        weights = levels.new_tensor(GREY).view(3, 1, 1)
        levels = (levels * weights).sum(-3, keepdim=True).round().expand_as(levels)
    if levels.shape[-2:] == size:
        return levels
    flat = levels.reshape(-1, *levels.shape[-3:])
    resized = torch.nn.functional.interpolate(flat, size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).reshape(*levels.shape[:-2], *size)


def patches(levels: Tensor, mean: Tensor, std: Tensor, patch: int, merged: int) -> tuple[Tensor, Tensor]:
    """Patches ``[P, C 2 patch patch]`` of B clips ``[B, F, C, H, W]`` in levels 0..255, and their grid ``[B, 3]``.

    Frames go in pairs, so F is even. The `merged` x `merged` patches that become one token stand side by side.
    """
    normed = (levels / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    count, length, channels, height, width = normed.shape
    rows, columns = height // patch, width // patch
    cut = normed.reshape(
        count, length // 2, 2, channels, rows // merged, merged, patch, columns // merged, merged, patch
    )
    ordered = cut.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # clip, pair, block row, block column, row, column, C, 2, p, p
    flat = ordered.reshape(-1, channels * 2 * patch * patch)
    return flat, torch.tensor([[length // 2, rows, columns]] * count)
