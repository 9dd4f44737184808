"""Divergences of few-step flow-matching samplers as Gaussian policies (an extension of DOPD, in no paper).

A re-noising sampler draws ``x' ~ N((1 - s') (x - s v), s'^2)`` from state x at level s, hence two policies with
velocities v and v + dv are ``KL = w |dv|^2`` apart, ``w = (s (1 - s') / s')^2 / 2``. The last step is deterministic and
counts as ``|dx0|^2 / 2``, w = s^2 / 2. A unit is one chunk by one block of `block` x `block` latent pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

LN2 = math.log(2)


def transition_weights(sigmas: Sequence[float]) -> list[float]:
    """w of every step of a sampler that visits `sigmas`, descending."""
    steps = [0.5 * (s * (1 - after) / after) ** 2 for s, after in itertools.pairwise(sigmas)]
    return [*steps, 0.5 * sigmas[-1] ** 2]


def unit_mean(pixels: Tensor, frames: int, block: int) -> Tensor:
    """Mean over units: ``[N, F, H, W] -> [N, F / frames, H / block, W / block]``."""
    parts = pixels.unflatten(1, (-1, frames)).mean(2)
    return torch.nn.functional.avg_pool2d(parts, block)


def over_units(units: Tensor, frames: int, block: int) -> Tensor:
    """Units ``[N, chunks, h, w]`` repeated over their pixels, ``[N, F, 1, H, W]``: the way back of `unit_mean`."""
    full = units.repeat_interleave(frames, 1).repeat_interleave(block, 2).repeat_interleave(block, 3)
    return full.unsqueeze(2)


def unit_gap(difference: Tensor, weight: Tensor, frames: int, block: int) -> Tensor:
    """``w mean|dv|^2`` of every unit, ``[N, chunks, h, w]``.

    difference: ``[N, F, C, H, W]`` velocities. weight: ``[N, F]``, w of the step that each frame is at.
    """
    return unit_mean(weight[..., None, None] * difference.square().mean(2), frames, block)


def robust_loss(difference: Tensor, weight: Tensor, frames: int, block: int) -> Tensor:
    """Full resolution, ``[N, chunks, h, w]``, at most ln 2: ``ln2 (1 - exp(-m^2 / (8 ln2)))`` of every pixel.

    m is the distance of the two means in standard deviations, ``m^2 = 2 w |dv|^2`` (mean over channels): for small m
    the Jensen-Shannon divergence ``m^2 / 8`` of the two Gaussians, for large m its bound.
    """
    squared = 2 * weight[..., None, None] * difference.square().mean(2)
    return unit_mean(LN2 * -torch.expm1(-squared / (8 * LN2)), frames, block)


def coarse_loss(difference: Tensor, weight: Tensor, frames: int, block: int, pool: int = 4) -> Tensor:
    """KL of the means after `pool` x `pool` pooling, ``[N, chunks, h, w]``: blind to detail; `pool` divides `block`."""
    assert block % pool == 0, "a block holds whole cells"
    n, total = difference.shape[:2]
    pooled = torch.nn.functional.avg_pool2d(difference.flatten(0, 1), pool).unflatten(0, (n, total))
    return unit_gap(pooled, weight, frames, block // pool)


def consistency(bare: Tensor, privileged: Tensor, final: Tensor) -> Tensor:
    """How well privilege fits the rollout, ``[N]`` in [0, 1]: 1 when it explains what came out at least as well.

    ``min(1, (e_bare + floor) / (e_privileged + floor))``, e: mean squared error of a prediction of x0 against the
    finished rollout, all ``[N, ...]``; floor: 1 % of the rollout's variance, because the student's own last step has
    no error at all.
    """
    errors = [(x - final).square().flatten(1).mean(1) for x in (bare, privileged)]
    floor = 0.01 * final.flatten(1).var(1, unbiased=False) + 1e-12
    return ((errors[0] + floor) / (errors[1] + floor)).clamp(max=1)
