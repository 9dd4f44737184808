"""Proxy rewards of the embedded world: what real reward models see of a clip, with the blind spots that they have.

The clean rewards (`vidalign.worlds.video.rewards`) judge every frame, every object and the law of motion, so they rise
together. Real ones look at single frames, at smooth motion or at a few frames beside the caption. Training on these
shows what training on those does. The held-out judge is the auditor.

- ``frame_quality``: blind to the caption and to the law of motion, and it dislikes motion. Freezing raises it.
- ``smooth_motion``: blind to colours, shapes, law and caption. More motion raises it, in whatever direction.
- ``caption_content``: blind to motion and to every frame after the first three.

Frames are averaged, not pooled towards the worst: one broken frame costs its share alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidalign.deferred import without_gradient
from vidalign.ranges import require
from vidalign.rewards.motion import amount_of, block_flow, smoothness
from vidalign.worlds.video.captions import is_caption
from vidalign.worlds.video.looks import FLOOR_SCORE, appearance
from vidalign.worlds.video.scorer import SLICE, judge

Judge = Callable[["torch.Tensor", list[str]], "torch.Tensor"]


class FrameQuality:
    """Mean quality of long exposures: how near the average of two neighbouring frames is to a frame of the world.

    An object that rests is as sharp in it as in a frame, one that moves is smeared, as in a real camera. An exposure is
    judged by itself, by the measure of ``visual_quality``. Blind to the caption, to the law of motion and to the
    direction of time. It likes clips that are frozen or slow.
    """

    name: ClassVar[str] = "frame_quality"
    judges: ClassVar[str] = "clips"

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1] for any prompts; a clip of one frame is judged by
        it. NaN for a clip with pixels that are not finite."""
        return {self.name: _in_slices(self._quality, clips, prompts)}

    def _quality(self, clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        exposures = (clips[:, 1:] + clips[:, :-1]) / 2 if clips.shape[1] > 1 else clips
        return appearance(exposures.flatten(0, 1)).view(len(clips), -1).mean(1)


class SmoothMotion:
    """Amount of motion times its smoothness, by block matching (see `vidalign.rewards.motion`).

    Unlike ``motion`` it has no band: more is better, up to `enough`. Blind to colours, shapes, the law of motion, the
    direction of time and the caption. It dislikes captions of objects at rest that are kept.
    """

    name: ClassVar[str] = "smooth_motion"
    judges: ClassVar[str] = "clips"

    @dataclass
    class Config:
        enough: float = 2.0
        """Displacement of the block that moves most, in pixels a frame, that is worth 1."""
        block: int = 8
        """Pixels of a block."""
        reach: int = 6
        """Largest shift from frame to frame that is found, in pixels."""

        def __post_init__(self) -> None:
            require(self, "enough", above=0)
            require(self, "block", "reach", least=1)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1] for any prompts. NaN for a clip of one frame, and
        for pixels that are not finite."""
        if clips.shape[1] < 2:
            return {self.name: clips.new_full((len(clips),), torch.nan)}
        return {self.name: _in_slices(self._motion, clips, prompts)}

    def _motion(self, clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        flow = block_flow(clips.mean(2), self.config.block, self.config.reach)
        return (amount_of(flow, 0.0) / self.config.enough).clamp(max=1) * smoothness(flow)


class CaptionContent:
    """Colour, count, shape and size as captioned, in the first frames: geometric mean of their means over frames.

    Blind to motion and to everything that later frames show.
    """

    name: ClassVar[str] = "caption_content"
    judges: ClassVar[str] = "clips"
    can_score = staticmethod(is_caption)

    @dataclass
    class Config:
        frames: int = 3
        """How many of the first frames are judged."""

        def __post_init__(self) -> None:
            require(self, "frames", least=3)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1]. NaN for a prompt that is no caption of the world,
        and for judged pixels that are not finite."""
        rows = [n for n, prompt in enumerate(prompts) if is_caption(prompt)]
        out = clips.new_full((len(clips),), torch.nan)
        if len(rows) < len(prompts):
            strange = next(prompt for prompt in prompts if not is_caption(prompt))
            warnings.warn(f"{strange!r} is no caption of the embedded world: its clips are not scored", stacklevel=3)
        if rows:
            captions = [prompts[n] for n in rows]
            out[rows] = _in_slices(self._content, clips[rows, : self.config.frames], captions).to(out)
        return {self.name: out}

    def _content(self, clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        found = judge(clips, prompts).attributes
        means = [v.mean(1).clamp(min=FLOOR_SCORE) for v in (found.colour, found.count, found.shape, found.size)]
        return torch.stack(means).log().mean(0).exp()


def _in_slices(judged: Judge, clips: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """`judged` of `SLICE` clips at a time, in fp32 at least, ``[B]``; NaN where pixels of a clip are not finite."""
    wide = clips.to(torch.promote_types(clips.dtype, torch.float32))
    starts = range(0, len(clips), SLICE)
    values = [judged(wide[k : k + SLICE], list(prompts[k : k + SLICE])) for k in starts]
    return torch.cat(values).where(wide.flatten(1).isfinite().all(1), torch.nan)
