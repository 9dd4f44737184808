"""The four regimes: disjoint, exhaustive, equal to a loop over tokens; thresholds over the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vidalign.losses.routing import (
    Regime,
    Thresholds,
    fractions,
    gap,
    gap_histogram,
    route_tokens,
    thresholds,
    trimmed_mean,
)


def logp(*shape: int, seed: int = 0) -> Tensor:
    return -3 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def twin(teacher: list[float], student: list[float], trim: float) -> list[Regime]:
    """The table of the paper, token by token."""
    gaps = [abs(t - s) for t, s in zip(teacher, student, strict=True)]
    sums = [math.exp(t) + math.exp(s) for t, s in zip(teacher, student, strict=True)]
    kept = len(gaps) - math.floor(trim * len(gaps))
    q_teacher, q_student = ([math.exp(value) for value in values] for values in (teacher, student))
    mean_gap, mean_t, mean_s = (sum(sorted(values)[:kept]) / kept for values in (gaps, q_teacher, q_student))
    mean_sum = mean_t + mean_s
    out = []
    for t, s, a, q in zip(teacher, student, gaps, sums, strict=True):
        if a < mean_gap:
            out.append(Regime.LH if q >= mean_sum else Regime.LL)
        else:
            out.append(Regime.HT if math.exp(t) >= math.exp(s) else Regime.HS)
    return out


@pytest.mark.parametrize("trim", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 200])
def test_routing_is_the_table(count: int, trim: float) -> None:
    for seed in range(3):
        t, s = logp(count, seed=seed), logp(count, seed=seed + 9)
        found = route_tokens(t, s, thresholds(t, s, trim))
        assert [Regime(r) for r in found.tolist()] == twin(t.tolist(), s.tolist(), trim)


def test_every_token_has_one_regime_and_all_occur() -> None:
    t, s = logp(400), logp(400, seed=1)
    found = route_tokens(t, s, thresholds(t, s))
    shares = fractions(found)
    assert set(found.tolist()) == {0, 1, 2, 3} and float(shares.sum()) == pytest.approx(1.0)
    a, q = gap(t, s), t.exp() + s.exp()
    bar = sum(one.exp().sort().values[:380].mean() for one in (t, s))
    conditions = torch.stack(
        [
            (a < a.sort().values[:380].mean()) & (q >= bar),
            (a < a.sort().values[:380].mean()) & (q < bar),
            (a >= a.sort().values[:380].mean()) & (t >= s),
            (a >= a.sort().values[:380].mean()) & (t < s),
        ]
    )
    assert (conditions.sum(0) == 1).all() and torch.equal(conditions.long().argmax(0), found)


def test_corners_by_hand() -> None:
    means = Thresholds(gap=1.0, confidence=1.0)
    q = {"LH": (0.9, 0.8), "LL": (0.1, 0.12), "HT": (0.9, 0.1), "HS": (0.05, 0.9)}
    t, s = (torch.tensor([pair[k] for pair in q.values()]).double().log() for k in (0, 1))
    assert [Regime(r).name for r in route_tokens(t, s, means).tolist()] == list(q)
    even = torch.tensor([0.0], dtype=torch.float64)
    assert route_tokens(even, even, Thresholds(0.0, 1.0)).tolist() == [Regime.HT], (
        "equal to the mean is high, ties go to T"
    )
    assert route_tokens(even, even, Thresholds(1.0, 2.0)).tolist() == [Regime.LH]


def test_a_few_outliers_move_no_threshold() -> None:
    values = torch.cat([torch.full((95,), 0.1), torch.full((5,), 1000.0)])
    assert trimmed_mean(values, 0.05) == pytest.approx(0.1) and trimmed_mean(values, 0.0) > 50
    assert trimmed_mean(values[torch.randperm(100)], 0.05) == pytest.approx(0.1)
    assert trimmed_mean(torch.tensor([]), 0.05) == 0.0 and trimmed_mean(torch.tensor([3.0]), 0.99) == 3.0


def test_thresholds_of_the_batch_are_not_those_of_its_parts() -> None:
    """Why routing is done once a step: halves with thresholds of their own disagree with the whole."""
    t, s = logp(200), logp(200, seed=1) * torch.cat([torch.ones(100), torch.full((100,), 0.1)])
    whole = route_tokens(t, s, thresholds(t, s))
    parts = torch.cat([route_tokens(t[h], s[h], thresholds(t[h], s[h])) for h in (slice(0, 100), slice(100, 200))])
    assert not torch.equal(whole, parts)


def test_shares() -> None:
    assert fractions(torch.tensor([[0, 1], [3, 0]])).tolist() == [0.5, 0.25, 0, 0.25]
    assert fractions(torch.tensor([3])).tolist() == [0, 0, 0, 1]
    assert fractions(torch.tensor([], dtype=torch.int64)).tolist() == [0, 0, 0, 0]


def test_histogram_of_gaps() -> None:
    found = gap_histogram(torch.tensor([0.0, 0.005, 0.01, 0.5, 2.9, 3.0, 100.0], dtype=torch.float64))
    assert list(found) == ["0", "0.01", "0.03", "0.1", "0.3", "1", "3"] and sum(found.values()) == pytest.approx(1.0)
    assert [round(7 * share) for share in found.values()] == [2, 1, 0, 0, 1, 1, 2]
    assert list(gap_histogram(torch.zeros(1)).values()) == [1, 0, 0, 0, 0, 0, 0]


def test_the_confidence_bar_trims_each_policy_by_itself() -> None:
    """Where one policy is sure the other is not: the trimmed mean of the sum is another number."""
    t = torch.tensor([0.9] + [0.1] * 19, dtype=torch.float64).log()
    s = torch.tensor([0.1] * 19 + [0.9], dtype=torch.float64).log()
    assert thresholds(t, s, 0.05).confidence == pytest.approx(0.2)
