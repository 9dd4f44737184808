"""Percentile bootstrap intervals (Efron 1979) over prompts, or over prompts and training seeds.

The hierarchical one draws both independently with replacement (Owen 2007, "The pigeonhole bootstrap"). All seeds meet
the same prompts, so both are sources of variance. With one seed only that of the prompts is seen.
"""

from __future__ import annotations

import torch

RESAMPLES = 2000


def interval(values: torch.Tensor, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of `values` ``[P]``, one entry per prompt, deterministic; NaN entries are left out."""
    values = values[values.isfinite()].double()
    if len(values) < 2:
        return (float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    return _percentiles(values[rows].mean(1), level)


def hierarchical_interval(values: torch.Tensor, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of `values` ``[S, P]``, training seeds by prompts, deterministic; NaN entries are left out.

    NaN twice when fewer than two prompts have a value.
    """
    values = values.double()
    known = values.isfinite()
    if known.any(0).sum() < 2:
        return (float("nan"), float("nan"))
    seeds, prompts = _draws(values.shape[0], 1), _draws(values.shape[1], 2)
    total = (seeds @ values.masked_fill(~known, 0.0) * prompts).sum(1)
    count = (seeds @ known.double() * prompts).sum(1)
    means = (total / count)[count > 0]
    return _percentiles(means, level)


def _draws(size: int, seed: int) -> torch.Tensor:
    """How often each of `size` things is drawn, ``[RESAMPLES, size]``."""
    rows = torch.randint(size, (RESAMPLES, size), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(RESAMPLES, size, dtype=torch.float64).scatter_add_(1, rows, torch.ones_like(rows).double())


def _percentiles(means: torch.Tensor, level: float) -> tuple[float, float]:
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return (low, high)
