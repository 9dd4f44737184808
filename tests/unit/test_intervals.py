"""Intervals over prompts and few seeds: quantiles against tables, the analysis of variance by hand, simulated coverage
and simulated power."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from vidalign.evaluation.intervals import estimate, quantile, shift


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the distribution ---

TABLE = {(0.975, 1): 12.7062, (0.975, 2): 4.30265, (0.975, 5): 2.57058, (0.995, 2): 9.92484, (0.9, 30): 1.31042}
"""Student's t as printed in tables."""
NONCENTRAL = {2: 5.6534894, 5: 3.5139041, 31: 2.8922049, 255: 2.8121914}
"""scipy.special.nctdtrinc(freedom, .2, stdtrit(freedom, .975)), scipy 1.16."""


def test_quantiles_are_those_of_the_tables() -> None:
    for (probability, freedom), expected in TABLE.items():
        assert quantile(probability, freedom) == pytest.approx(expected, rel=1e-5)
    assert quantile(0.975, 1.5) == pytest.approx(6.016663, rel=1e-6)  # scipy.special.stdtrit(1.5, .975)
    assert quantile(0.975, 1e6) == pytest.approx(1.959966, rel=1e-5)
    for freedom, expected in NONCENTRAL.items():
        assert shift(quantile(0.975, freedom), freedom) == pytest.approx(expected, rel=1e-6)


# --- the estimate ---


def test_one_seed_is_the_t_interval_over_prompts() -> None:
    values = 3 + 0.5 * numbers(12)
    half = 2.20099 * float(values.std()) / math.sqrt(12)  # t with 11 degrees of freedom
    found = estimate(values)
    assert found.interval == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), rel=1e-5)
    assert estimate(values[None]) == found == estimate(torch.cat([values, torch.full((5,), math.nan)]))
    moved = estimate(7 - 2 * values)
    assert moved.interval == pytest.approx((7 - 2 * found.interval[1], 7 - 2 * found.interval[0]))
    assert moved.detectable == pytest.approx(2 * found.detectable)


def test_variance_and_degrees_of_freedom_by_hand() -> None:
    """The textbook's analysis of variance, seeds far apart and many of them: Satterthwaite's interval alone."""
    values = 2 + numbers(12, 1) + 0.5 * numbers(1, 30, seed=1) + 0.3 * numbers(12, 30, seed=2)
    mean = values.mean()
    seeds = 30 * ((values.mean(1) - mean) ** 2).sum() / 11
    prompts = 12 * ((values.mean(0) - mean) ** 2).sum() / 29
    rest = ((values - values.mean(1, True) - values.mean(0, True) + mean) ** 2).sum() / (11 * 29)
    variance = float(seeds + prompts - rest) / 360
    freedom = (360 * variance) ** 2 / float(seeds**2 / 11 + prompts**2 / 29)
    found = estimate(values)
    half = (found.interval[1] - found.interval[0]) / 2
    own = float((seeds - rest) * quantile(0.975, 11) ** 2 + prompts * quantile(0.975, 29) ** 2) / 360
    assert half == pytest.approx(max(quantile(0.975, freedom) * math.sqrt(variance), math.sqrt(own)), rel=1e-9)
    assert found.mean == pytest.approx(float(mean)) and sum(found.interval) / 2 == pytest.approx(float(mean))
    alone = estimate(values.mean(0)).interval
    assert half > (alone[1] - alone[0]), "an interval over prompts alone is blind to the seeds"


def test_too_little_to_say_anything() -> None:
    for few in ([], [1.0], [1.0, math.nan]):
        found = estimate(torch.tensor(few))
        assert all(math.isnan(x) for x in (*found.interval, found.detectable))
    holes = torch.tensor([[1.0, math.nan], [math.nan, 2.0]])
    assert math.isnan(estimate(holes).interval[0]) and estimate(holes).mean == 1.5
    assert estimate(torch.full((3, 4), 0.5)).interval == (0.5, 0.5)


# --- simulation ---

Draw = Callable[[int], torch.Tensor]


def crossed(seeds: int, prompts: int, sds: tuple[float, float, float], gaps: float = 0.0) -> Draw:
    """Values around 0: sd of the seeds' effects, of the prompts' and of the rest; `gaps` is the share left out."""

    def draw(n: int) -> torch.Tensor:
        s, p, r = sds
        values = s * numbers(seeds, 1, seed=3 * n) + p * numbers(1, prompts, seed=3 * n + 1)
        values = values + r * numbers(seeds, prompts, seed=3 * n + 2)
        chance = torch.rand(values.shape, generator=torch.Generator().manual_seed(n))
        return values.masked_fill(chance < gaps, math.nan)

    return draw


def passes(seeds: int, prompts: int) -> Draw:
    """Passed or not, minus one half: most prompts nearly always or nearly never."""

    def draw(n: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(n)
        chance = 0.5 + 0.5 * torch.cos(math.pi * torch.rand(1, prompts, generator=generator, dtype=torch.float64))
        chance = chance + 0.05 * torch.randn(seeds, 1, generator=generator, dtype=torch.float64)
        return (torch.rand(seeds, prompts, generator=generator, dtype=torch.float64) < chance).double() - 0.5

    return draw


def skewed(seeds: int, prompts: int) -> Draw:
    """Prompts' effects and rest exponential: few prompts gain a lot."""

    def draw(n: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(n)
        sizes = [torch.empty(*shape, dtype=torch.float64) for shape in ((1, prompts), (seeds, prompts))]
        prompt, rest = (size.exponential_(generator=generator) - 1 for size in sizes)
        return 0.02 * numbers(seeds, 1, seed=n) + 0.1 * prompt + 0.1 * rest

    return draw


TIMES = 1500
SIMULATED = {
    "3 seeds, 256 prompts": crossed(3, 256, (0.02, 0.1, 0.1)),
    "3 seeds that weigh most": crossed(3, 64, (0.05, 0.1, 0.1)),
    "3 seeds, interaction": crossed(3, 256, (0.02, 0.04, 0.14)),
    "3 seeds alike": crossed(3, 64, (0.0, 0.1, 0.1)),
    "6 seeds, 256 prompts": crossed(6, 256, (0.02, 0.1, 0.1)),
    "6 seeds, gaps": crossed(6, 64, (0.03, 0.1, 0.1), gaps=0.3),
    "3 seeds, passes": passes(3, 128),
    "6 seeds, passes": passes(6, 128),
    "3 seeds, skewed": skewed(3, 128),
    "1 seed": crossed(1, 32, (0.0, 0.1, 0.1)),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_the_interval_covers_the_truth_as_often_as_it_says(name: str) -> None:
    """The standard error of a share of .95 is .0056 here. Above .975 it would be too long to be of use."""
    intervals = [estimate(SIMULATED[name](n)).interval for n in range(TIMES)]
    covered = sum(low <= 0 <= high for low, high in intervals) / TIMES
    assert 0.93 <= covered <= 0.975


def test_a_percentile_bootstrap_does_not() -> None:
    """What the interval replaces: seeds and prompts drawn with replacement, 3 seeds."""
    draw, covered = SIMULATED["3 seeds that weigh most"], 0
    for n in range(400):
        values, generator = draw(n), torch.Generator().manual_seed(n)
        seeds = torch.randint(3, (500, 3), generator=generator)
        prompts = torch.randint(64, (500, 64), generator=generator)
        by_seed = torch.stack([values[:, row].mean(1) for row in prompts])
        low, high = by_seed.gather(1, seeds).mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        covered += low <= 0 <= high
    assert covered / 400 < 0.9


@pytest.mark.parametrize(("seeds", "prompts"), [(1, 32), (3, 128), (6, 128)])
def test_the_detectable_difference_is_shown_with_its_power(seeds: int, prompts: int) -> None:
    draw = crossed(seeds, prompts, (0.03 if seeds > 1 else 0.0, 0.1, 0.1))
    found = [estimate(draw(n)) for n in range(TIMES)]
    effect = math.sqrt(sum(one.detectable**2 for one in found) / TIMES)  # single ones are as uncertain as variances
    shown = sum(one.interval[0] + effect > 0 for one in found) / TIMES
    assert 0.77 <= shown <= 0.85
