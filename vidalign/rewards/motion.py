"""Motion: does enough move, and does it move on? By block matching between frames; needs no weights.

Grey frames of at most `side` pixels on their shorter side are cut into blocks. A block of frame t moves by the shift
``|d| <= reach`` with the least mean absolute difference to frame t + 1, refined by a parabola. The shift counts where
it explains more than half of the difference between the two: it does for a body that moves, and not for noise. Shifts
of less than half a pixel are not found.

amount: displacement, mean over the `share` of blocks that move most [VBench's dynamic degree takes the largest 5 % too,
Huang et al. 2024], per second and in shorter sides of the picture.
smoothness: ``1 - |d' - d| / (|d'| + |d|)`` between a block and the most similar block around it one frame later, mean
weighted by displacement. Jitter, shuffled frames and things that vanish lower it.
band: 1 where the amount lies in `low`..`high`, falling with its logarithm to 0 at half of low and twice high.

The score is ``band * smoothness``. It is blind to the prompt, to shapes and to colours: a camera that glides over
nonsense is perfect. Use it beside others, or as a judge of clips that freeze.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidalign.deferred import without_gradient
from vidalign.ranges import require

STILL = 2 / 255
"""Mean absolute difference of a block below which nothing has changed."""
EXPLAINED = 0.5
"""Share of that difference which a shift must bring it below."""


class MotionReward:
    """Smooth motion of the right amount, in 0..1."""

    name: ClassVar[str] = "motion"
    judges: ClassVar[str] = "clips"

    @dataclass
    class Config:
        low: float = 0.05
        """Amount from which on a clip moves enough, in shorter sides of the picture a second."""
        high: float = 1.0
        """Amount up to which it does not move too much."""
        share: float = 0.05
        """Of the blocks whose motion counts, those that move most."""
        side: int = 64
        """Pixels of the shorter side that frames are reduced to; smaller ones stay as they are."""
        block: int = 8
        """Pixels of a block."""
        reach: int = 6
        """Largest shift from frame to frame that is found, in pixels of the reduced frames."""

        def __post_init__(self) -> None:
            require(self, "low", "high", above=0)
            require(self, "share", above=0, most=1)
            require(self, "side", "block", "reach", least=1)
            if self.high < self.low:
                raise ValueError("high must be at least low")

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str], fps: float = 16.0) -> dict[str, torch.Tensor]:
        """``[B]`` under ``motion`` and, for the log, ``amount``, ``smoothness`` and ``band``.

        clips: ``[B, F, 3, H, W]`` in [0, 1], of `fps` frames a second. A clip of one frame, or with a value that is
        not finite, gets NaN.
        """
        config = self.config
        values = torch.full((3, len(clips)), torch.nan)
        for n, clip in enumerate(clips):
            if len(clip) > 1 and clip.isfinite().all():
                grey = reduced(clip.float().mean(1), config.side)
                flow = block_flow(grey[None], config.block, config.reach)
                side = min(grey.shape[-2:])
                amount = float(amount_of(flow, config.share)[0]) * fps / side
                values[:, n] = torch.tensor(
                    [amount, float(smoothness(flow)[0]), in_band(amount, config.low, config.high)]
                )
        amounts, smooth, bands = values
        return {self.name: bands * smooth, "amount": amounts, "smoothness": smooth, "band": bands}


def reduced(grey: torch.Tensor, side: int) -> torch.Tensor:
    """Frames ``[F, H, W]`` with at most `side` pixels on the shorter side."""
    factor = side / min(grey.shape[-2:])
    if factor >= 1:
        return grey
    size = [max(1, round(n * factor)) for n in grey.shape[-2:]]
    return torch.nn.functional.interpolate(grey[None], size=size, mode="bilinear", antialias=True)[0]


def block_flow(grey: torch.Tensor, block: int, reach: int) -> torch.Tensor:
    """Displacements ``[B, F - 1, 2, h, w]``, down and to the right in pixels, of the blocks of grey frames
    ``[B, F, H, W]`` from each frame to the next; 0 where no shift explains what has changed."""
    first, second = grey[:, :-1], grey[:, 1:]
    padded = torch.nn.functional.pad(second, (reach,) * 4, mode="replicate")
    width, (high, wide) = 2 * reach + 1, grey.shape[-2:]
    costs = []
    for top in range(width):
        for left in range(width):
            moved = padded[..., top : top + high, left : left + wide]
            costs.append(torch.nn.functional.avg_pool2d((first - moved).abs(), block, ceil_mode=True))
    cost = torch.stack(costs)  # [S, B, N, h, w]
    still = cost[width * reach + reach]
    far = torch.tensor([abs(n // width - reach) + abs(n % width - reach) for n in range(width**2)])
    best = (cost + 1e-6 * far.to(cost).view(-1, 1, 1, 1, 1)).argmin(0)  # of equal ones the nearest
    least = cost.gather(0, best[None])[0]
    found = (still > STILL) & (least < EXPLAINED * still)
    down, right = best // width, best % width
    shift = torch.stack(
        [
            down - reach + _refined(cost, best, down, width, width),
            right - reach + _refined(cost, best, right, 1, width),
        ],
        2,
    )
    return shift * found[:, :, None]


def _refined(cost: torch.Tensor, best: torch.Tensor, place: torch.Tensor, step: int, width: int) -> torch.Tensor:
    """Offset in -.5..5 of the minimum of the parabola through the best shift and its neighbours along one axis."""
    inner = (place > 0) & (place < width - 1)
    at = best.where(inner, step)  # any place that has two neighbours
    before, here, after = (cost.gather(0, (at + n * step)[None])[0] for n in (-1, 0, 1))
    bend = before - 2 * here + after
    offset = (before - after) / (2 * bend.clamp(min=1e-9))
    return offset.clamp(-0.5, 0.5) * inner * (here > 1e-6)  # an exact match needs no refinement


def amount_of(flow: torch.Tensor, share: float) -> torch.Tensor:
    """``[B]``, pixels a frame: mean over the blocks that move most, then over frames."""
    length = flow.norm(dim=2).flatten(2)
    count = max(1, round(share * length.shape[2]))
    mean: torch.Tensor = length.topk(count, 2).values.mean((1, 2))
    return mean


def smoothness(flow: torch.Tensor) -> torch.Tensor:
    """``[B]`` in 0..1; 0 where nothing moves, 1 for clips of two frames that move."""
    length = flow.norm(dim=2)
    total = length[:, :-1].sum((1, 2, 3))
    if length.shape[1] < 2:
        moves: torch.Tensor = length.sum((1, 2, 3)) > 0
        return moves.to(length)
    now, later = flow[:, :-1], flow[:, 1:]
    batch, steps, _, high, wide = later.shape
    around = torch.nn.functional.unfold(later.flatten(0, 1), 3, padding=1).view(batch, steps, 2, 9, high, wide)
    change = (around - now[:, :, :, None]).norm(dim=2)
    sizes = around.norm(dim=2) + now.norm(dim=2)[:, :, None]
    nearest = (change / sizes.clamp(min=1e-9)).amin(2)
    kept = ((1 - nearest) * length[:, :-1]).sum((1, 2, 3))
    return torch.where(total > 0, kept / total.clamp(min=1e-9), 0.0)


def in_band(amount: float, low: float, high: float) -> float:
    """1 inside, falling with the logarithm of the amount to 0 at low / 2 and 2 high."""
    if amount <= low / 2 or amount >= 2 * high:
        return 0.0
    outside = max(low / amount, amount / high, 1.0)
    return 1 - float(torch.log2(torch.tensor(outside)))
