"""Groups whose reward spread is noise beside that of other groups are not trained on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidalign.losses.advantages import SignalFloor
from vidalign.objectives.parts.scoring import compute_advantages, group_weights


def context(floor: SignalFloor, **weights: float) -> Any:
    """What `judge` asks of a training context, for one process and one reward or those of `weights`."""
    return SimpleNamespace(
        signal=floor,
        reward_weights=weights or {"bright": 1.0},
        rewards=None,
        world_size=1,
        spread=1,
        gather=lambda value: value,
    )


def scores(*spreads: float) -> dict[str, torch.Tensor]:
    """Groups of four with these population standard deviations."""
    shape = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    return {"bright": torch.stack([0.5 + spread * shape for spread in spreads])}


@pytest.mark.parametrize("normalise", ["group", "batch"])
def test_a_group_whose_spread_is_noise_weighs_nothing(normalise: str) -> None:
    given = scores(0.25, 0.001, 0.25)
    judged = compute_advantages(context(SignalFloor()), given, combination="whitened", normalise=normalise)
    assert judged.has_signal.tolist() == [[True, False, True]]
    assert judged.advantage[1].abs().max() == 0 and judged.advantage[0].abs().max() > 0.5
    assert group_weights(judged).tolist() == [1.5, 0.0, 1.5]
    assert judged.metrics["health/low_spread_groups/mean"] == pytest.approx(1 / 3)


def test_every_rank_finds_its_own_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two ranks has a group of noise beside one of signal, the second the other way round."""
    first, second = scores(0.25, 0.001)["bright"], scores(0.001, 0.5)["bright"]
    for rank, own in enumerate((first, second)):
        monkeypatch.setattr("vidalign.engine.distributed.rank", lambda rank=rank: rank)
        ctx = context(SignalFloor())
        ctx.world_size, ctx.gather = 2, lambda value: torch.cat([first, second]).flatten()
        judged = compute_advantages(ctx, {"bright": own}, combination="raw_sum", normalise="none")
        assert judged.has_signal.tolist() == [[True, False], [False, True]]
        assert judged.advantage.abs().amax(1).tolist() == pytest.approx([0.25, 0.0] if rank == 0 else [0.0, 0.5])
        assert group_weights(judged).tolist() == ([2.0, 0.0] if rank == 0 else [0.0, 2.0])


def test_the_floor_remembers_earlier_steps() -> None:
    """A step that forks where nothing varies has no group to be compared with but those of earlier steps."""
    floor = SignalFloor()
    compute_advantages(context(floor), scores(0.2, 0.3, 0.25), combination="whitened", normalise="group")
    late = compute_advantages(context(floor), scores(0.001, 0.002), combination="whitened", normalise="group")
    assert not late.has_signal.any() and late.advantage.abs().max() == 0 and group_weights(late).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_whitened_rewards_have_a_floor_each_whatever_their_scales(scale: float) -> None:
    """The narrow reward alone differs in the second group, as much as elsewhere; neither does in the fourth; a reward
    of weight 0 makes no group train."""
    given = {
        "wide": scale * scores(10.0, 0.1, 10.0, 0.1)["bright"],
        "narrow": scores(0.25, 0.25, 0.001, 0.001)["bright"],
        "logged": scores(1.0, 1.0, 1.0, 1.0)["bright"],
    }
    ctx = context(SignalFloor(), wide=1.0, narrow=1.0, logged=0.0)
    judged = compute_advantages(ctx, given, combination="whitened", normalise="group")
    assert judged.has_signal.tolist() == [[True, True, True, False]]
    assert judged.advantage.abs().amax(1).gt(0.5).tolist() == [True, True, True, False]
    assert set(ctx.signal.state_dict()) == {"wide", "narrow"}


def test_raw_sums_have_the_floor_of_their_sum() -> None:
    """The narrow reward has no part in a raw sum whose other term is a thousand times as wide."""
    given = {"wide": scores(1000.0, 1.0)["bright"], "narrow": scores(0.25, 0.25)["bright"]}
    ctx = context(SignalFloor(), wide=1.0, narrow=1.0)
    judged = compute_advantages(ctx, given, combination="raw_sum", normalise="group")
    assert judged.has_signal.tolist() == [[True, False]]


def test_a_reward_that_is_equal_but_for_rounding_lets_no_group_train() -> None:
    noise = torch.tensor([[0.0, 1e-7, 0.0, 1e-7]] * 3, dtype=torch.float64)
    given = {"bright": scores(0.25, 0.001, 0.25)["bright"], "text": 1.0 + noise}
    ctx = context(SignalFloor(), bright=1.0, text=1.0)
    judged = compute_advantages(ctx, given, combination="whitened", normalise="group")
    assert judged.has_signal.tolist() == [[True, False, True]] and judged.advantage[1].abs().max() == 0


def test_small_rewards_are_signal_when_all_are_small() -> None:
    judged = compute_advantages(context(SignalFloor()), scores(1e-4, 2e-4), combination="whitened", normalise="group")
    assert judged.has_signal.all() and judged.advantage.abs().max() > 0.4


def test_a_share_of_zero_trains_on_all_that_differ() -> None:
    given = scores(0.25, 0.001, 0.0)
    judged = compute_advantages(context(SignalFloor(0.0)), given, combination="whitened", normalise="group")
    assert judged.has_signal.tolist() == [[True, True, False]]
    rounding = {"bright": torch.tensor([[-1e-6, 1e-6]], dtype=torch.float64)}
    judged = compute_advantages(context(SignalFloor(0.0)), rounding, combination="raw_sum", normalise="none")
    assert judged.has_signal.tolist() == [[False]], "the largest spread that is none"


def test_objectives_of_one_run_have_floors_of_their_own() -> None:
    floor = SignalFloor()
    assert floor.of("whole").has_signal(torch.tensor([1.0, 1.1, 0.9]), "a").all()
    assert floor.of("fork").has_signal(torch.tensor([0.04, 0.05]), "a").all()
    assert not floor.of("whole").has_signal(torch.tensor([0.04, 0.05]), "a").any()
    assert set(floor.state_dict()) == {"whole/a", "fork/a"}


def test_groups_that_do_not_differ_neither_train_nor_count() -> None:
    """The median of all five spreads would be 0."""
    found = SignalFloor().has_signal(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.05]), "a")
    assert found.tolist() == [False, False, False, True, False]
    assert SignalFloor(0.0).has_signal(torch.tensor([0.0, 0.1]), "a").tolist() == [False, True]


def test_the_memory_survives_a_resume_and_rewards_do_not_mix() -> None:
    floor, again = SignalFloor(), SignalFloor()
    floor.has_signal(torch.tensor([0.2, 0.3]), "a")
    again.load_state_dict(floor.state_dict())
    for one in (floor, again):
        assert not one.has_signal(torch.tensor([0.001]), "a").any()
        assert one.has_signal(torch.tensor([0.001]), "b").all()
