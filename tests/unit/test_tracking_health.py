"""Health monitors: each fires exactly once on its fault, and all are silent on healthy data."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vidalign.tracking import HealthMonitors, Tracker
from vidalign.tracking.health import Metrics, default_monitors

STEPS = 60
NAMES = {
    "reward_nan",
    "reward_constant",
    "zero_std_groups",
    "adapter_empty",
    "zero_gradient",
    "on_policy_gap",
    "motion_collapse",
    "held_out_falling",
    "discriminator_saturated",
    "discriminator_blind",
    "discriminator_memorises",
    "skipped_updates",
    "nobody_selected",
}


def healthy(step: int) -> Metrics:
    """A run that learns: everything noisy, the held-out score checked every ten steps."""
    rng = random.Random(step)
    metrics = {
        "reward/mean": 0.5 + 0.003 * step + rng.gauss(0, 0.02),
        "reward/motion_quality/mean": 0.4 + 0.003 * step + rng.gauss(0, 0.02),
        "reward/group_std/mean": 0.1,
        "health/reward_nan": 0.0,
        "health/zero_std_groups": rng.choice([0.0, 0.125, 0.5]),
        "health/adapter_layers": 24.0,
        "health/grad_norm/max": 0.3 + rng.random(),
        "health/on_policy_gap/max": 1e-6,
        "objective/selected/mean": rng.choice([0.0625, 0.25]),
        "health/motion/mean": 0.1 + rng.gauss(0, 0.01),
        "health/discriminator_margin_sigmoid/mean": rng.choice([0.005, 0.3, 0.5]) if step % 2 else 0.3,
        "health/discriminator_pair_accuracy/mean": 0.9,
        "health/discriminator_held_out_accuracy/mean": 0.8,
    }
    if step % 10 == 0:
        metrics["health/held_out"] = 0.5 + 0.002 * step + rng.gauss(0, 0.01)
    return metrics


def nan_reward(step: int) -> Metrics:
    return {"reward/motion_quality/mean": float("nan")}


def failed_items(step: int) -> Metrics:
    return {"health/reward_nan": 0.0 if step < 5 else 0.125}


FAULTS = {
    "reward_nan": nan_reward,
    "reward_nan (items)": failed_items,
    "reward_constant": lambda step: {"reward/motion_quality/mean": 1.0},
    "zero_std_groups": lambda step: {"health/zero_std_groups": 0.625},
    "adapter_empty": lambda step: {"health/adapter_layers": 0.0},
    "zero_gradient": lambda step: {"health/grad_norm/max": 0.0},
    "skipped_updates": lambda step: {"health/skipped_updates": 1.0},
    "on_policy_gap": lambda step: {"health/on_policy_gap/max": 0.31},
    "nobody_selected": lambda step: {"objective/selected/mean": 0.0} if step == 7 else {},
    "nobody_selected (in a mixture)": lambda step: {"objective/careful_selected/mean": 0.0},
    "motion_collapse": lambda step: {"health/motion/mean": 0.1 / (1 + 0.1 * step)},
    "held_out_falling": lambda step: {"health/held_out": 0.7 - 0.01 * step} if step % 10 == 0 else {},
    "discriminator_saturated": lambda step: {"health/discriminator_margin_sigmoid/mean": 0.002},
    "discriminator_blind": lambda step: {"health/discriminator_margin_sigmoid/mean": 0.499},
    "discriminator_memorises": lambda step: {"health/discriminator_held_out_accuracy/mean": 0.5},
}


def test_there_is_a_fault_for_every_monitor() -> None:
    assert {name.split()[0] for name in FAULTS} == NAMES and len(default_monitors()) == len(NAMES)


def test_a_healthy_run_raises_no_warning() -> None:
    monitors = HealthMonitors()
    assert [w for step in range(1, STEPS + 1) for w in monitors.check(healthy(step))] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_warns_exactly_once_with_a_fix_and_alone(fault: str) -> None:
    monitors = HealthMonitors()
    warnings = [
        warning for step in range(1, STEPS + 1) for warning in monitors.check(healthy(step) | FAULTS[fault](step))
    ]
    assert [warning.name for warning in warnings] == [fault.split()[0]]
    assert warnings[0].message and warnings[0].fix


def test_missing_metrics_are_not_judged() -> None:
    monitors = HealthMonitors()
    assert [w for _ in range(STEPS) for w in monitors.check({"objective/loss/mean": 0.0})] == []


def test_held_out_falling_together_with_the_reward_is_no_hacking() -> None:
    monitors = HealthMonitors()
    warnings = []
    for step in range(1, STEPS + 1):
        worse = 1 - 0.01 * step
        warnings += monitors.check({"reward/mean": worse, "health/held_out": worse})
    assert warnings == []


def test_a_held_out_check_that_failed_hides_no_later_fall() -> None:
    monitors = HealthMonitors()
    warnings = []
    for step, held_out in enumerate([float("nan"), 0.6, 0.4, float("nan"), 0.4, 0.4]):
        warnings += monitors.check({"reward/mean": 0.1 * step, "health/held_out": held_out})
    assert [warning.name for warning in warnings] == ["held_out_falling"]


def test_one_low_held_out_check_is_forgiven() -> None:
    monitors = HealthMonitors()
    warnings = []
    for step, held_out in enumerate([0.5, 0.6, 0.4, 0.58, 0.4]):  # 0.58 is within the margin of the best
        warnings += monitors.check({"reward/mean": 0.1 * step, "health/held_out": held_out})
    assert warnings == []


def test_one_low_motion_log_is_forgiven() -> None:
    monitors = HealthMonitors()
    values = [0.1, 0.1, 0.1, 0.01, 0.01, 0.1, 0.01, 0.01, 0.1]
    assert [w for value in values for w in monitors.check({"health/motion": value})] == []


def test_tracker_records_a_warning_once_with_its_step(tmp_path: Path) -> None:
    with Tracker(tmp_path, {}, total_steps=3, tensorboard=False, panel="none") as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"health/grad_norm": 0.0 if step > 1 else 1.0})
        tracker.warn(tracker.warnings[0])
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [(record["step"], record["name"]) for record in records if record["kind"] == "health"]
    assert told == [(2, "zero_gradient")] and [w.name for w in tracker.warnings] == ["zero_gradient"]
