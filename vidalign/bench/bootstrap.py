"""Bootstrap intervals over prompts (Efron 1979, percentile method); seeds of a prompt stay together."""

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
    means = values[rows].mean(1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return (low, high)
