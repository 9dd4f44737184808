"""Negative-aware forward-process losses: DiffusionNFT (2509.16117), Astrolabe (2603.17051), AFD (2605.26105).

A finished rollout x0 is noised and predicted again. With ``x+ = beta x0_cur + (1 - beta) x0_old`` and its mirror
``x- = (1 + beta) x0_old - beta x0_cur`` a sample of reward weight r in [0, 1] costs
``r |x+ - x0|^2 + (1 - r) |x- - x0|^2``: good samples pull the prediction towards them, bad ones push it away.
In velocities the same formula holds; x0-space is sigma^2 times velocity-space.
"""

from __future__ import annotations

import torch


def sample_mean(x: torch.Tensor) -> torch.Tensor:
    """Mean over all dimensions but the first: ``[N, ...] -> [N]``, in fp32 or wider."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).mean(1)


def forward_process_loss(
    current: torch.Tensor,
    old: torch.Tensor,
    target: torch.Tensor,
    reward_weight: torch.Tensor,
    *,
    beta: float,
    advantage_clip: float | None = None,
) -> torch.Tensor:
    """Loss of each sample, ``[N]``.

    current, old, target: ``[N, ...]`` predictions of the two policies and the rollout itself, all in x0-space or
    all in velocity-space; only `current` carries gradient. reward_weight: ``[N]`` in [0, 1], 1/2 = indifferent.

    advantage_clip: None for the plain sum of Astrolabe. A value A_max turns on DiffusionNFT's adaptive weighting:
    each branch is divided by the detached mean ``|x+- - x0|`` of its sample (at least 1e-5) and the sum multiplied
    by ``A_max / beta``. It collapses distilled students after some 50 steps (Astrolabe, section 4).

    Exact: with e = old - target and d = current - old the plain loss is
    ``mean(e^2 + 2 beta (2r - 1) e d + beta^2 d^2)``, least at ``d = (1 - 2r) e / beta``.
    """
    old, target = old.detach(), target.detach()
    positive = beta * current + (1 - beta) * old - target
    negative = (1 + beta) * old - beta * current - target
    good, bad = sample_mean(positive**2), sample_mean(negative**2)
    if advantage_clip is None:
        return reward_weight * good + (1 - reward_weight) * bad
    good = good / sample_mean(positive.detach().abs()).clamp(min=1e-5)
    bad = bad / sample_mean(negative.detach().abs()).clamp(min=1e-5)
    return (reward_weight * good + (1 - reward_weight) * bad) * advantage_clip / beta


def reference_penalty(current: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``|current - reference|^2`` of each sample, ``[N]``: the KL of two Gaussian policies up to its constant."""
    return sample_mean((current - reference.detach()) ** 2)
