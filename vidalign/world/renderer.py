"""Anti-aliased renderer of the video world: signed distances turned into pixel coverage, painted over the ground.

Coverage of a pixel is ``clamp(1/2 - distance, 0, 1)`` with the distance from its centre to the outline, the exact
area for a straight axis-parallel edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidalign.world.constants import BACKGROUND, COLOURS, EXTENT, FRAMES, PALETTE, SHAPES, SIZE
from vidalign.world.scenes import Scenes, sample


def _distances(offset: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Signed distance to every shape: offset ``[..., 2]`` from the centre -> ``[..., shapes]``, negative inside."""
    x, y = offset.abs().unbind(-1)
    circle = torch.hypot(x, y) - radius
    square = torch.maximum(x, y) - EXTENT["square"] * radius
    diamond = (x + y - EXTENT["diamond"] * radius) * 0.5**0.5
    return torch.stack((circle, square, diamond), -1)


def coverage(scenes: Scenes) -> torch.Tensor:
    """Share of each pixel that each object covers: ``[B, F, 2, H, W]`` in [0, 1]; 0 for an absent object."""
    centres = torch.arange(SIZE, dtype=torch.float32) + 0.5
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)  # [H, W, 2] as (x, y)
    offset = grid - scenes.position.float()[:, :, :, None, None]
    radius = scenes.radius.float()[:, None, :, None, None]
    distance = _distances(offset, radius)
    index = scenes.shape[:, None, :, None, None, None].expand(*distance.shape[:-1], 1)
    assert distance.shape[-1] == len(SHAPES), "one distance for each shape"
    covered = (0.5 - distance.gather(-1, index)[..., 0]).clamp(0, 1)
    return covered * scenes.present[:, None, :, None, None]


def render(scenes: Scenes) -> torch.Tensor:
    """Paint the scenes: float32 clips ``[B, F, 3, H, W]`` in [0, 1]; the second object lies under the first."""
    palette = torch.tensor([PALETTE[name] for name in COLOURS])
    covered = coverage(scenes)
    clips = torch.tensor(BACKGROUND)[:, None, None].expand(*covered.shape[:2], 3, SIZE, SIZE)
    for k in reversed(range(covered.shape[2])):
        colour = palette[scenes.colour[:, k]][:, None, :, None, None]
        mask = covered[:, :, k, None]
        clips = clips + mask * (colour - clips)
    return clips


def clips(
    captions: Sequence[str], frames: int = FRAMES, *, generator: torch.Generator, speeds: str = "train"
) -> torch.Tensor:
    """Ground-truth clips of captions, ``[B, F, 3, H, W]`` in [0, 1]; arguments as for `scenes.sample`."""
    return render(sample(captions, frames, generator=generator, speeds=speeds))
