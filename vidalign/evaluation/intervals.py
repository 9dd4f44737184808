"""Intervals of a mean over prompts and a few training seeds, and the smallest difference that they would show.

All seeds meet the same prompts, so values ``[S, P]`` have crossed random effects: seed + prompt + rest. Their variances
come from sums of squares inside seeds, inside prompts and over all (balanced: the analysis of variance; with gaps: the
moment equations of Gao & Owen 2017, arXiv:1602.00346). The mean's variance is the sum of three shares. Its degrees of
freedom are Satterthwaite's (1946, Biometrics Bulletin 2:110): with 3 seeds that vary there are 2, whatever the number
of prompts. A percentile bootstrap over both (Owen & Eckles 2012, arXiv:1106.2125) does not know that: with 3 seeds it
covers .81 to .87 where it promises .95.

Two departures. Negative components count as zero. Satterthwaite's degrees of freedom come out too high when the seeds
happen to lie close together, which costs up to .03 of coverage; so the interval is never shorter than the root of the
summed squares of each share's own t interval (Cochran 1964, Biometrics 20:191, weighs the quantiles alike).
With one seed only prompts vary and this is Student's t interval. Coverage is simulated in
`tests/unit/test_intervals.py`; it falls below .93 where the seeds' effects themselves are strongly skewed, and to .90
with two seeds: what one degree of freedom says of them is often zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch

NAN = math.nan
LEVEL = 0.95
POWER = 0.8
POINTS = 257
"""Points of the quadrature below; twice as many change no digit of float64 that matters."""
CLOSE = 1e-6
"""Relative step of Newton's method after which it ends: the error is about the square of the last step."""
NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and training seeds."""

    mean: float
    interval: tuple[float, float]
    """At 95 %; NaN twice where fewer than two prompts have a value, or too few values for the number of effects."""
    detectable: float
    """The difference from zero that such data show with probability .8 by a two-sided test at .05; NaN likewise."""


@dataclass(frozen=True)
class Shares:
    """What the variance of a mean is made of."""

    seeds: float
    """The seeds' share, without that of the rest."""
    prompts: float
    """The prompts' share and that of the rest."""
    freedom: tuple[float, float]
    """Degrees of freedom of both; the first is 0 with one seed."""
    satterthwaite: float
    """Those of the sum."""


def estimate(values: torch.Tensor, level: float = LEVEL) -> Estimate:
    """Mean, interval and detectable difference of `values` ``[P]`` (one seed) or ``[S, P]``; NaN entries are left out.

    level: probability in (0, 1) with which the interval is to cover the mean over all prompts and seeds.
    """
    table = np.atleast_2d(values.detach().cpu().double().numpy())
    known = np.isfinite(table)
    if not known.all():
        rows, columns = known.any(1), known.any(0)
        table, known = table[rows][:, columns], known[rows][:, columns]
    mean = float(table[known].mean()) if known.any() else NAN
    shares = _shares(table, known)
    if shares is None:
        return Estimate(mean, (NAN, NAN), NAN)
    variance = shares.seeds + shares.prompts
    if variance <= 0:
        return Estimate(mean, (mean, mean), 0.0)
    error, tail = math.sqrt(variance), (1 + level) / 2
    own = [quantile(tail, f) if f else 0.0 for f in shares.freedom]
    least = math.sqrt((shares.seeds * own[0] ** 2 + shares.prompts * own[1] ** 2) / variance)
    times = max(quantile(tail, shares.satterthwaite), least)
    return Estimate(mean, (mean - times * error, mean + times * error), error * shift(times, shares.satterthwaite))


def _shares(values: np.ndarray, known: np.ndarray) -> Shares | None:
    """The shares of ``[S, P]`` values without empty rows and columns; None where they are not determined."""
    seeds, prompts = values.shape
    count = int(known.sum())
    if prompts < 2:
        return None
    if seeds == 1:
        return Shares(0.0, float(values.var(ddof=1)) / prompts, (0.0, prompts - 1.0), prompts - 1.0)
    rest_freedom = count - seeds - prompts + 1
    if rest_freedom < 1:
        return None
    filled = np.where(known, values, 0.0)
    by_seed, by_prompt = known.sum(1, dtype=float), known.sum(0, dtype=float)
    squares = float((filled**2).sum())
    within_seeds = squares - float((filled.sum(1) ** 2 / by_seed).sum())
    within_prompts = squares - float((filled.sum(0) ** 2 / by_prompt).sum())
    overall = squares - float(filled.sum()) ** 2 / count
    seeds_each, prompts_each = float((by_seed**2).sum()) / count**2, float((by_prompt**2).sum()) / count**2
    equations = [  # expectations in the variances of seed, prompt and rest
        [0.0, count - seeds, count - seeds],
        [count - prompts, 0.0, count - prompts],
        [count * (1 - seeds_each), count * (1 - prompts_each), count - 1.0],
    ]
    seed, prompt, rest = np.linalg.solve(equations, [within_seeds, within_prompts, overall]).tolist()
    rest = max(rest, 0.0)
    own = rest / count
    of_seeds, of_prompts = max(seed * seeds_each, -own), max(prompt * prompts_each, -own)
    freedom = (seeds - 1.0, prompts - 1.0)
    spread = (of_seeds + own) ** 2 / freedom[0] + (of_prompts + own) ** 2 / freedom[1]  # of mean squares
    shares = (max(of_seeds, 0.0), max(of_prompts, 0.0) + own)
    return Shares(*shares, freedom, sum(shares) ** 2 / spread if spread > 0 else freedom[0])


@lru_cache(maxsize=512)
def _scales(freedom: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights of ``sqrt(chi2 / freedom)``: a variable t is a normal one over it. The logarithm of it has a
    density without corners, of which the trapezoidal rule is exact to rounding."""
    width = 9 / math.sqrt(freedom)
    count = POINTS * max(1, round(8 / freedom))
    logs = torch.linspace(-max(38 / freedom, width), math.log1p(width), count, dtype=torch.float64)
    density = freedom * (logs - torch.exp(2 * logs) / 2)
    weights = torch.exp(density - density.max())
    return logs.exp(), weights / weights.sum()


@lru_cache(maxsize=512)
def quantile(probability: float, freedom: float) -> float:
    """Student's t below which lies `probability` in [0.5, 1), by Newton's method; `freedom` at least 0.5."""
    scales, weights = _scales(freedom)
    z = NORMAL.inv_cdf(probability)
    found = z + (z**3 + z) / (4 * freedom)  # of Cornish and Fisher's expansion
    for _ in range(100):
        normal = found * scales
        short = probability - float(weights @ torch.special.ndtr(normal))
        step = short / float(weights @ (scales * _density(normal)))
        found += step
        if abs(step) < CLOSE * (1 + abs(found)):
            break
    return found


def shift(critical: float, freedom: float, power: float = POWER) -> float:
    """Non-centrality of a t variable that passes `critical` with probability `power` (noncentral t)."""
    scales, weights = _scales(freedom)
    low, high = 0.0, critical * float(scales.max()) + 10
    found = critical + NORMAL.inv_cdf(power)
    for _ in range(100):  # Newton's method, halving where it would leave the bracket
        distance = found - critical * scales
        short = power - float(weights @ torch.special.ndtr(distance))
        low, high = (found, high) if short > 0 else (low, found)
        slope = float(weights @ _density(distance))
        step = short / slope if slope > 0 else math.inf
        if not low < found + step < high:
            step = (low + high) / 2 - found
        found += step
        if abs(step) < CLOSE * (1 + found):
            break
    return found


def _density(x: torch.Tensor) -> torch.Tensor:
    """Of the standard normal distribution."""
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
