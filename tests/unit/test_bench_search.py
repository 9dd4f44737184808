"""The search of `vidalign bench tune` on functions whose best settings are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from vidalign.bench.search import FAILED, Axis, Point, at_edge, grid_size, next_trials, winner

RATE = Axis("rate", 1e-3, (3.33e-4, 1e-3, 3e-3))
KL = Axis("kl", 0.1, (0.01, 0.1, 1.0))
GROUP = Axis("group", 1.0, (1.0, 2.0), whole=True, least=2.0)


def searched(
    axes: list[Axis], score: Callable[..., float], trials: int = 12, widen: int = 2
) -> tuple[dict[Point, float], list[int]]:
    """All trials, and how many ran side by side in each round."""
    scores: dict[Point, float] = {}
    rounds = []
    while new := next_trials(axes, scores, trials, widen):
        assert len(set(new)) == len(new) and not set(new) & set(scores)
        scores |= {point: score(*point) for point in new}
        rounds.append(len(new))
    return scores, rounds


def bowl(rate: float, *rest: float) -> float:
    """Best at a rate of 1e-3."""
    return -(math.log(rate / 1e-3) ** 2)


def test_every_row_has_the_same_number_of_trials() -> None:
    for axes in ([RATE], [RATE, GROUP], [RATE, KL, GROUP]):
        for trials in (grid_size(axes), 9, 12):
            scores, _ = searched(axes, bowl, trials)
            assert len(scores) == trials and winner(axes, scores)[0] == 1e-3


def test_axes_are_tuned_one_after_the_other() -> None:
    scores, rounds = searched([RATE, KL], lambda r, k: bowl(r) - math.log(k / 0.01) ** 2, trials=5, widen=0)
    assert rounds == [3, 2] and winner([RATE, KL], scores) == (1e-3, 0.01)
    assert all(rate == 1e-3 for rate, kl in scores if kl != 0.1), "the second axis at the best of the first"


def test_a_winner_at_the_edge_widens_the_grid_up_to_a_bound() -> None:
    scores, rounds = searched([RATE], lambda rate: rate, trials=5, widen=2)
    assert sorted(scores) == [(3.33e-4,), (1e-3,), (3e-3,), (9e-3,), (0.027,)] and rounds == [3, 1, 1]
    assert at_edge([RATE], scores, winner([RATE], scores)) == ["rate"]
    bound, _ = searched([RATE], lambda rate: rate, trials=5, widen=1)
    assert max(bound) == (9e-3,), "the trial that is left refines"
    inside, _ = searched([RATE], lambda rate: -abs(math.log(rate / 9e-3)), trials=5, widen=2)
    assert winner([RATE], inside) == (9e-3,) and at_edge([RATE], inside, (9e-3,)) == []


def test_widening_takes_its_trials_from_what_comes_later() -> None:
    scores, rounds = searched([RATE, KL], lambda rate, kl: rate, trials=6, widen=2)
    assert len(scores) == 6 and rounds == [3, 1, 1, 1], "one of the two other values of the second axis"


def test_whole_numbers_stop_at_the_least() -> None:
    scores, _ = searched([RATE, GROUP], lambda rate, group: bowl(rate) - group, trials=9)
    assert winner([RATE, GROUP], scores) == (1e-3, 1.0) and at_edge([RATE, GROUP], scores, (1e-3, 1.0)) == []
    assert {group for _, group in scores} == {1.0, 2.0}


def test_trials_that_are_left_refine_the_first_axis() -> None:
    scores, _ = searched([RATE], lambda rate: -abs(math.log(rate / 1.7e-3)), trials=7, widen=2)
    assert abs(math.log(winner([RATE], scores)[0] / 1.7e-3)) < 0.15


def test_failed_trials_lose_and_equal_ones_stay_near_the_recipe() -> None:
    scores, _ = searched([RATE], lambda rate: FAILED if rate > 1e-3 else 0.0, trials=3)
    assert winner([RATE], scores) == (1e-3,), "of equal ones the recipe's own"
    assert winner([RATE], {**scores, (3.33e-4,): 0.5}) == (3.33e-4,)
    flat, _ = searched([RATE, KL], lambda rate, kl: 0.0, trials=5)
    assert set(flat) == {(3.33e-4, 0.1), (1e-3, 0.1), (3e-3, 0.1), (1e-3, 0.01), (1e-3, 1.0)}


def test_the_search_goes_on_from_any_point() -> None:
    whole, _ = searched([RATE, KL], lambda r, k: bowl(r) - k, trials=8)
    for known in range(len(whole)):
        scores = dict(list(whole.items())[:known])
        while new := next_trials([RATE, KL], scores, 8, 2):
            scores |= {point: bowl(point[0]) - point[1] for point in new}
        assert scores == whole


@pytest.mark.parametrize("low", [True, False])
def test_the_next_value_is_as_far_away_again(low: bool) -> None:
    assert RATE.beyond(low) == pytest.approx(1.11e-4 if low else 9e-3, rel=1e-2)
    assert GROUP.beyond(low) == (None if low else 4.0)
