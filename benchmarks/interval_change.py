"""What intervals that know the few training seeds change in the published tables, against percentile bootstraps.

    python benchmarks/interval_change.py [--simulations 400]

Prints the coverage of both in a simulation (sd of seeds .03, of prompts .1, of the rest .1; 256 prompts, seed 0), then
every difference in `results/` (rows against the start and their baselines, held-out prompts, shown metrics) that
excluded zero by one of them only. The bootstrap draws seeds and prompts with replacement (Owen & Eckles,
arXiv:1106.2125), 2,000 times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from vidalign.bench.comparison import (
    Difference,
    baselines_of,
    cells_of,
    difference,
    metric_names,
    paired,
    values_of,
)
from vidalign.bench.results import Results, read_results
from vidalign.bench.sections import BASE
from vidalign.bench.watched import shown
from vidalign.evaluation.intervals import estimate

RESAMPLES = 2000
FOLDER = Path(__file__).parent / "results"


def bootstrap(values: torch.Tensor) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``[S, P]``; NaN entries are left out."""
    known = values.isfinite()
    seeds, prompts = (_draws(size, n) for n, size in enumerate(values.shape, start=1))
    total = (seeds @ values.masked_fill(~known, 0.0) * prompts).sum(1)
    count = (seeds @ known.double() * prompts).sum(1)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile((total / count)[count > 0], ends).tolist()
    return low, high


def _draws(size: int, seed: int) -> torch.Tensor:
    """How often each of `size` things is drawn, ``[RESAMPLES, size]``."""
    rows = torch.randint(size, (RESAMPLES, size), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(RESAMPLES, size, dtype=torch.float64).scatter_add_(1, rows, torch.ones_like(rows).double())


def coverage(seeds: int, simulations: int) -> tuple[float, float]:
    """Shares of simulated means, all 0, that the bootstrap's and the new intervals cover."""
    generator, hits = torch.Generator().manual_seed(0), [0, 0]
    for _ in range(simulations):
        values = sum(
            sd * torch.randn(*shape, generator=generator, dtype=torch.float64)
            for sd, shape in ((0.03, (seeds, 1)), (0.1, (1, 256)), (0.1, (seeds, 256)))
        )
        for n, (low, high) in enumerate((bootstrap(values), estimate(values).interval)):
            hits[n] += low <= 0 <= high
    return hits[0] / simulations, hits[1] / simulations


def compared(results: Results) -> Iterator[tuple[str, tuple[float, float], Difference]]:
    """(row - other, the bootstrap's interval, the difference) of every row against the start and its baseline."""
    for row, baseline in baselines_of(results).items():
        for other in dict.fromkeys((BASE, baseline)):
            first, second = paired(cells_of(results, other), cells_of(results, row), other, row)
            for metric in shown(metric_names(results.cells)):
                values = values_of(second, metric) - values_of(first, metric)
                if (found := difference(first, second, metric)) is not None:
                    yield f"{row} - {other}", bootstrap(values), found


def main() -> None:
    """Print coverage, then what changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=400)
    simulations = parser.parse_args().simulations
    for seeds in (3, 6):
        before, now = coverage(seeds, simulations)
        print(f"{seeds} seeds: the bootstrap covers {before:.3f}, the new interval {now:.3f}")
    count, changed = 0, 0
    for file in sorted(FOLDER.glob("*.json")):
        if '"cells": [' not in file.read_text(encoding="utf-8"):
            continue
        for name, (low, high), found in compared(read_results(file)):
            before, now = low > 0 or high < 0, found.interval[0] > 0 or found.interval[1] < 0
            count, changed = count + 1, changed + (before != now)
            if before != now:
                ends = f"{found.interval[0]:+.3f} .. {found.interval[1]:+.3f}, before {low:+.3f} .. {high:+.3f}"
                print(f"{file.stem}: {name}, {found.metric}: {found.difference:+.3f} ({ends})")
    print(f"{changed} of {count} differences changed")


if __name__ == "__main__":
    main()
