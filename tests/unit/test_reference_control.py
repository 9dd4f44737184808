"""Which samples Astrolabe's penalty holds and when its reference moves, without any network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidalign.objectives.parts.reference import KLConfig, ReferenceControl


def follow(control: ReferenceControl, **sums: float) -> list[tuple[str, str]]:
    """The copies of a step with these sums."""
    copies: list[tuple[str, str]] = []
    policies = SimpleNamespace(copy=lambda source, target: copies.append((source, target)))
    ctx: Any = SimpleNamespace(sums={name: torch.tensor(value) for name, value in sums.items()}, policies=policies)
    control.follow(ctx)
    return copies


@pytest.mark.parametrize("wrong", [{"weight": -1e-3}, {"reset_drift": 0.0}, {"reset_every": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KLConfig(**wrong)
    with pytest.raises(ValueError, match="mode none does not use"):
        KLConfig(mode="none", reset_every=3)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({}, "fixed"), ({"reset_drift": 0.1}, "own"), ({"reset_every": 3}, "own")],
)
def test_the_reference_moves_where_one_of_the_resets_is_set(settings: dict[str, Any], rule: str) -> None:
    control = ReferenceControl(KLConfig(weight=0.0, **settings))
    assert control.rule == rule and control.resets is (rule == "own")


def test_the_chosen_samples_share_the_weight_of_all() -> None:
    """Of 20 samples the rewards swap the first pair with the second and agree on the rest: the first is suspected."""
    control = ReferenceControl(KLConfig(mode="selective"))
    first = torch.tensor([18.0, 18.0, 17.0, 17.0, *range(16)])
    second = torch.tensor([17.0, 17.0, 18.0, 18.0, *range(16)])
    ctx: Any = SimpleNamespace(world_size=1, reward_weights={"first": 1.0, "second": 0.0})
    scores = {"first": first.view(2, 10), "second": second.view(2, 10)}
    weights, metrics = control.select(ctx, scores, torch.zeros(20))
    assert weights["kl_weight"].tolist() == [10.0, 10.0] + [0.0] * 18
    assert metrics == {"objective/rho/mean": 0.1, "objective/selected/mean": 0.1}


def test_sums_of_a_micro_batch() -> None:
    distance, chosen = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.5, 1.5])
    target = torch.tensor([[0.0, 2.0], [1.0, 1.0], [0.0, 4.0]])
    found = {name: float(value) for name, value in ReferenceControl.sums(distance, chosen, target).items()}
    assert found == {"penalty": 6.0, "penalised": 2.0, "variance": 10.0, "samples": 3.0}


def test_drift_is_the_mean_over_the_penalised_and_must_exceed_its_share() -> None:
    control = ReferenceControl(KLConfig(reset_drift=0.5))
    sums = {"penalised": 1.0, "variance": 2.0, "samples": 2.0}
    assert follow(control, penalty=0.5, **sums) == [], "half of the variance 1 is not more than half of it"
    assert follow(control, penalty=0.51, **sums) == [("current", "reference")] and control.state.age == 0
    assert follow(control, penalty=0.0, penalised=0.0, variance=24.0, samples=2.0) == [] and control.state.age == 1
    assert control.state.variance == pytest.approx(0.9 * 1 + 0.1 * 12)
    follow(control, penalty=0.0, penalised=0.0, variance=2.0, samples=2.0)
    assert control.state.variance == pytest.approx(0.9 * 2.1 + 0.1 * 1)
