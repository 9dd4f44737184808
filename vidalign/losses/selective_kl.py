"""Uncertainty-aware selective KL: which samples are held near the reference (Astrolabe, 2603.17051).

A sample that the primary reward ranks high and the auxiliary rewards rank low is likely to hack the primary one. With
ranks over the whole gathered batch, 1 = best, ties sharing their mean rank:

    gap = mean rank(auxiliaries) - rank(primary)          large and positive = suspicious
    mask = gap > tau,  tau = (100 - 100 rho)-th percentile of the non-negative gaps

and rho follows the mean non-negative gap m of recent steps: times 1.1 above all of them, times 0.9 below all of them.
The released code has the sign of the gap inverted: its penalty lands on samples that the primary reward under-rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

RHO_START, RHO_RANGE = 0.1, (0.02, 0.2)
BUFFER = 20
"""Steps whose mean gap is remembered."""


def ranks(score: torch.Tensor) -> torch.Tensor:
    """Rank of every entry, ``[N] -> [N]`` fp64: 1 = highest, ties share the mean of their ranks, NaN stays NaN."""
    finite = ~score.isnan()
    value = torch.where(finite, score, -torch.inf)
    above = (value[None] > value[:, None]).sum(1)
    equal = ((value[None] == value[:, None]) & finite[None]).sum(1)
    rank = above.double() + (equal.double() + 1) / 2
    return torch.where(finite, rank, torch.nan)


def rank_discrepancy(scores: Mapping[str, torch.Tensor], primary: str) -> torch.Tensor:
    """``mean rank(auxiliaries) - rank(primary)`` of every sample, ``[N]`` fp64; NaN where any reward failed.

    scores: ``[N]`` of each reward over the whole batch, higher is better; at least two of them, `primary` among them.
    The gaps of a batch without failures sum to zero.
    """
    assert primary in scores and len(scores) > 1, "a discrepancy needs a primary reward and an auxiliary one"
    auxiliary = torch.stack([ranks(score) for name, score in scores.items() if name != primary])
    return auxiliary.mean(0) - ranks(scores[primary])


def uncertain(gap: torch.Tensor, rho: float) -> torch.Tensor:
    """Mask ``[N]`` of the samples whose gap exceeds the ``1 - rho`` quantile of the non-negative gaps.

    gap: ``[N]``, NaN never chosen. rho: share of the non-negative gaps to choose, in 0..1. None is chosen when the
    rewards agree on the order of all samples.
    """
    positive = gap[gap >= 0]
    if not positive.numel():
        return torch.zeros_like(gap, dtype=torch.bool)
    return gap > torch.quantile(positive, 1 - rho)


def mean_gap(gap: torch.Tensor) -> float:
    """Mean of the non-negative gaps; 0 when there are none."""
    positive = gap[gap >= 0]
    return float(positive.mean()) if positive.numel() else 0.0


def adapt_rho(rho: float, gap: float, recent: Sequence[float]) -> float:
    """The next rho: 1.1 rho when `gap` is above all `recent` mean gaps, 0.9 rho below all of them, inside RHO_RANGE.

    An empty history changes nothing.
    """
    if recent and gap > max(recent):
        rho *= 1.1
    elif recent and gap < min(recent):
        rho *= 0.9
    return min(max(rho, RHO_RANGE[0]), RHO_RANGE[1])
