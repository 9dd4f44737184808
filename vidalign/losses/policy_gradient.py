"""Clipped policy gradients (PPO, 1707.06347, equation 7) and the policy of a stochastic few-step sampler."""

from __future__ import annotations

import torch

from vidalign.losses.flow_matching import expand_sigma


def clipped_surrogate(ratio: torch.Tensor, advantage: torch.Tensor, clip: float | None) -> torch.Tensor:
    """``min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)``, to be maximised; shapes broadcast.

    A step that would move a ratio further beyond its bound in the direction of its advantage gains nothing and has
    no gradient. None leaves the ratio alone.
    """
    if clip is None:
        return ratio * advantage
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clip_fraction(ratio: torch.Tensor, advantage: torch.Tensor, clip: float | None) -> torch.Tensor:
    """Share of the entries with an advantage whose gradient the clip removes, a scalar; 0 where none has one."""
    if clip is None:
        return torch.zeros((), device=ratio.device)
    stopped = ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))
    return stopped.sum() / (advantage != 0).sum().clamp(min=1)


def renoising_log_prob(x_next: torch.Tensor, x0: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    """Log-probability of one re-noising step, per frame ``[N, F]``, a mean over its elements, up to a constant.

    The sampler draws ``x_next = (1 - sigma') x0 + sigma' noise`` with fresh noise: a Gaussian policy whose mean is
    the network's prediction, ``log p = -|x_next - (1 - sigma') x0|^2 / (2 sigma'^2)`` (Flow-GRPO, 2505.05470, and
    DanceGRPO, 2505.07818, take the mean over elements too). x_next, x0: ``[N, F, ...]``; sigma_next: ``[N, F]``, > 0.
    """
    dtype = torch.promote_types(x0.dtype, torch.float32)
    x_next, x0 = x_next.detach().to(dtype), x0.to(dtype)
    sigma = expand_sigma(sigma_next, x0)
    return -((x_next - (1 - sigma) * x0) ** 2 / (2 * sigma**2)).flatten(2).mean(2)
