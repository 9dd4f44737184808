"""Rank discrepancy, selection and its threshold against values worked out by hand and by brute force."""

from __future__ import annotations

import math

import pytest
import torch

from vidalign.losses.selective_kl import (
    BUFFER,
    RHO_RANGE,
    RHO_START,
    adapt_rho,
    mean_gap,
    rank_discrepancy,
    ranks,
    uncertain,
)

NAN = math.nan


def scores(**values: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_ranks_by_hand() -> None:
    assert ranks(torch.tensor([0.3, 0.9, -1.0])).tolist() == [2, 1, 3]
    assert ranks(torch.tensor([5.0, 7.0, 5.0, 5.0, 1.0])).tolist() == [3, 1, 3, 3, 5], "ties share the mean of 2, 3, 4"
    assert ranks(torch.tensor([2.0, 2.0])).tolist() == [1.5, 1.5]
    found = ranks(torch.tensor([0.1, NAN, 0.2])).tolist()
    assert found[0] == 2 and math.isnan(found[1]) and found[2] == 1, "a failed score takes no rank"


def test_ranks_are_positions_in_the_sorted_list() -> None:
    values = torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(0)).double()
    ordered = sorted(values.tolist(), reverse=True)
    expected = [sum(k + 1 for k, v in enumerate(ordered) if v == x) / ordered.count(x) for x in values.tolist()]
    assert ranks(values).tolist() == pytest.approx(expected)


def test_discrepancy_by_hand() -> None:
    """The sample that the primary rates best and both others worst stands out with the intended sign."""
    given = scores(a=[0.9, 0.5, 0.1], b=[0.0, 1.0, 0.5], c=[0.2, 0.8, 0.9])
    assert rank_discrepancy(given, "a").tolist() == [3 - 1, 1.5 - 2, 1.5 - 3]
    assert rank_discrepancy(given, "b").tolist() == [2 - 3, 2 - 1, 2 - 2]
    assert rank_discrepancy(scores(a=[1.0, 2.0], b=[3.0, 3.0]), "a").tolist() == [-0.5, 0.5]


def test_discrepancy_depends_on_order_alone_and_sums_to_zero() -> None:
    numbers = torch.randn(3, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = dict(zip("abc", numbers, strict=True))
    gap = rank_discrepancy(given, "b")
    assert abs(float(gap.sum())) < 1e-9
    stretched = {"a": given["a"].exp(), "b": 100 * given["b"] - 7, "c": given["c"] ** 3}
    assert torch.equal(rank_discrepancy(stretched, "b"), gap)
    assert (rank_discrepancy({"a": given["a"], "b": 2 * given["a"]}, "a") == 0).all()


def test_a_failed_reward_leaves_its_sample_out() -> None:
    gap = rank_discrepancy(scores(a=[4.0, 3.0, 2.0, 1.0, 0.0], b=[0.0, NAN, 1.0, 3.0, 2.0]), "a")
    assert gap[[0, 2, 3, 4]].tolist() == [3, 0, -3, -3] and gap[1].isnan()
    assert uncertain(gap, 0.2).tolist() == [True, False, False, False, False]
    nothing = torch.full((4,), NAN)
    assert not uncertain(nothing, 0.2).any() and mean_gap(nothing) == 0


def test_one_reward_has_no_discrepancy() -> None:
    with pytest.raises(AssertionError, match="auxiliary"):
        rank_discrepancy(scores(a=[1.0, 2.0]), "a")


def test_selection_by_hand() -> None:
    """Non-negative gaps 0, 1, ..., 10: their 90th percentile is 9, their 75th 7.5; negative ones do not count."""
    gap = torch.tensor([-50.0, *range(11), -3.0, NAN], dtype=torch.float64)
    assert gap[uncertain(gap, 0.1)].tolist() == [10]
    assert gap[uncertain(gap, 0.25)].tolist() == [8, 9, 10]
    assert mean_gap(gap) == 5


def test_agreement_selects_nothing_and_ties_stand_or_fall_together() -> None:
    assert not uncertain(torch.zeros(6), 0.2).any()
    assert not uncertain(torch.tensor([2.0, 2.0, 0.0, 2.0]), 0.1).any(), "no gap exceeds the threshold"
    assert uncertain(torch.tensor([2.0, 2.0, *[0.0] * 18]), 0.15).tolist() == [True, True] + [False] * 18


def test_threshold_adaptation_by_hand() -> None:
    assert (RHO_START, RHO_RANGE, BUFFER) == (0.1, (0.02, 0.2), 20)
    assert adapt_rho(0.1, 7.0, []) == 0.1
    assert adapt_rho(0.1, 7.0, [3.0, 6.0]) == pytest.approx(0.11)
    assert adapt_rho(0.1, 2.0, [3.0, 6.0]) == pytest.approx(0.09)
    assert adapt_rho(0.1, 3.0, [3.0, 6.0]) == adapt_rho(0.1, 4.0, [3.0, 6.0]) == adapt_rho(0.1, 6.0, [3.0, 6.0]) == 0.1
    assert adapt_rho(0.19, 7.0, [3.0]) == 0.2 and adapt_rho(0.021, 1.0, [3.0]) == 0.02
