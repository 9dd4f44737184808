"""Anti-aliased renderer of the video world: signed distances become coverage, painted over the ground.

Coverage of a pixel is ``clamp(1/2 - distance, 0, 1)`` with the distance from its centre to the outline. That is the
exact area for a straight axis-parallel edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidalign.worlds.video.constants import BACKGROUND, COLOURS, EXTENT, FRAMES, PALETTE, SHAPES, SIZE
from vidalign.worlds.video.scenes import Scenes, sample


def _distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Signed distance to a shape's outline, negative inside; x, y: absolute offsets from its centre."""
    if shape == "circle":
        return (x * x + y * y).sqrt_().sub_(radius)
    if shape == "square":
        return torch.maximum(x, y).sub_(EXTENT["square"] * radius)
    return (x + y).sub_(EXTENT["diamond"] * radius).mul_(0.5**0.5)


def coverage(
    position: torch.Tensor, radius: torch.Tensor, shape: torch.Tensor, height: int = SIZE, width: int = SIZE
) -> torch.Tensor:
    """Share of each pixel that one object per clip covers.

    position: ``[n, F, 2]`` (x, y); radius, shape: ``[n]`` -> ``[n, F, H, W]`` in [0, 1], float32.
    """
    position, radius = position.float(), radius.float()
    x = (torch.arange(width, dtype=torch.float32) + 0.5 - position[..., 0, None]).abs()
    y = (torch.arange(height, dtype=torch.float32) + 0.5 - position[..., 1, None]).abs()
    out = torch.empty(*position.shape[:2], height, width)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero()[:, 0]
        if len(rows):
            distance = _distance(name, x[rows, :, None, :], y[rows, :, :, None], radius[rows, None, None, None])
            out[rows] = distance.neg_().add_(0.5).clamp_(0, 1)
    return out


def render(scenes: Scenes) -> torch.Tensor:
    """Paint the scenes: float32 clips ``[B, F, 3, H, W]`` in [0, 1]; the second object is painted first."""
    palette = torch.tensor([PALETTE[name] for name in COLOURS])
    ground = torch.tensor(BACKGROUND)[:, None, None]
    clips = ground.expand(*scenes.position.shape[:2], 3, SIZE, SIZE).contiguous()
    for k in reversed(range(scenes.position.shape[2])):
        rows = scenes.present[:, k].nonzero()[:, 0]
        if len(rows) == 0:
            continue
        mask = coverage(scenes.position[rows, :, k], scenes.radius[rows, k], scenes.shape[rows, k])[:, :, None]
        colour = palette[scenes.colour[rows, k]][:, None, :, None, None]
        if len(rows) == len(clips):
            clips.lerp_(colour.expand_as(clips), mask.expand_as(clips))
        else:
            under = clips[rows]
            clips[rows] = under.lerp_(colour.expand_as(under), mask.expand_as(under))
    return clips


def clips(
    captions: Sequence[str], frames: int = FRAMES, *, generator: torch.Generator, speeds: str = "train"
) -> torch.Tensor:
    """Ground-truth clips of captions, ``[B, F, 3, H, W]`` in [0, 1]; arguments as for `scenes.sample`."""
    return render(sample(captions, frames, generator=generator, speeds=speeds))
