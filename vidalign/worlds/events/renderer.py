"""Renderer of the event world: that of the first video world, frame by frame, since objects come, go and change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidalign.worlds.events.constants import FRAMES, SIZE
from vidalign.worlds.events.scenes import Scenes, draw, sample, uniforms
from vidalign.worlds.video import renderer
from vidalign.worlds.video.scenes import Scenes as Frames


def render(scenes: Scenes) -> torch.Tensor:
    """Paint the scenes: float32 clips ``[B, F, 3, H, W]`` in [0, 1]; the second object is painted first."""
    batch, frames = scenes.event.shape
    pictures = Frames(
        position=scenes.position.flatten(0, 1)[:, None],
        radius=scenes.radius.repeat_interleave(frames, 0),
        colour=scenes.colour.flatten(0, 1),
        shape=scenes.shape.repeat_interleave(frames, 0),
        present=scenes.present.flatten(0, 1),
    )
    return renderer.render(pictures)[:, 0].view(batch, frames, 3, SIZE, SIZE)


def clips(
    captions: Sequence[str], frames: int = FRAMES, *, generator: torch.Generator, speeds: str = "train"
) -> torch.Tensor:
    """Ground-truth clips of captions, ``[B, F, 3, H, W]`` in [0, 1]; arguments as for `scenes.draw`."""
    return render(draw(captions, frames, generator=generator, speeds=speeds))


def clips_of(captions: Sequence[str], frames: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """The same, with a generator for each caption: a clip does not depend on the others."""
    return render(sample(captions, torch.cat([uniforms(1, frames, each) for each in generators])))
