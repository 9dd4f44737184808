"""Flow matching: ``x_t = (1 - sigma) x0 + sigma noise``, ``velocity = noise - x0``, ``x0 = x_t - sigma velocity``."""

from __future__ import annotations

from typing import TypeVar

import torch

Level = TypeVar("Level", float, "torch.Tensor")


def expand_sigma(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Noise levels ``[N]`` or ``[N, F]`` shaped to broadcast over ``[N, F, C, H, W]``."""
    return sigma.reshape(*sigma.shape, *[1] * (like.ndim - sigma.ndim)).to(like.dtype)


def add_noise(x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """Noise clean latents ``[N, F, C, H, W]`` to level sigma in [0, 1]: ``[N]``, ``[N, F]`` or one number for all.

    Computed in fp32 or wider, and rounded to the dtype of `x0`.
    """
    wide = torch.promote_types(x0.dtype, torch.float32)
    if x0.dtype != wide:  # a level that is a number, or of no dimension, would leave the sum in bf16
        each = torch.as_tensor(sigma, dtype=wide, device=x0.device)
        return add_noise(x0.to(wide), noise.to(wide), each.reshape(-1) if each.ndim == 0 else each).to(x0.dtype)
    level: torch.Tensor | float = expand_sigma(sigma, x0) if isinstance(sigma, torch.Tensor) else sigma
    return (1 - level) * x0 + level * noise


def warp_sigma(sigma: Level, shift: float) -> Level:
    """Timestep shift ``s sigma / (1 + (s - 1) sigma)``: s > 1 moves mass to high noise, 0 and 1 stay."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_matching_loss(
    velocity: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, *, sigma_floor: float
) -> torch.Tensor:
    """``|velocity - (noise - x0)|^2`` of each sample, ``[N]``, in fp32 or wider.

    Below `sigma_floor` a clip's weight falls as ``(sigma / sigma_floor)^2``: a network that predicts x0 divides its
    error by sigma, which would let the last few noise levels dominate. 0 is the plain loss.
    """
    difference = velocity - (noise - x0)
    error = difference.to(torch.promote_types(difference.dtype, torch.float32)) ** 2
    if sigma_floor > 0:
        error = error * (expand_sigma(sigma, error) / sigma_floor).clamp(max=1) ** 2
    return error.flatten(1).mean(1)
