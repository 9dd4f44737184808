"""A mixture of objectives that do nothing: whose turn it is, and what is added up."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from vidalign.losses.advantages import SignalFloor
from vidalign.objectives.base import STUDENT, Blueprint, Experience, Objective, Phase
from vidalign.objectives.mixture import Mixture, _own_view


class Fake(Objective):
    """Some phases, and a note of every call."""

    def __init__(self, *phases: Phase, policies: dict[str, Any] | None = None) -> None:
        super().__init__(None)
        self.turns, self.policies = phases or (Phase(STUDENT),), policies or {}
        self.calls: list[Any] = []

    def blueprint(self) -> Blueprint:
        return Blueprint(self.policies)

    def phases(self, step: int) -> tuple[Phase, ...]:
        return self.turns

    def check_models(self, student: Any, teacher: Any) -> None:
        self.calls.append((student, teacher))

    def after_step(self, ctx: Any) -> None:
        self.calls.append(dict(ctx.sums))


def mixture(*objectives: Fake, **settings: Any) -> Mixture:
    part = {"start": 0, "stop": None, "weight": 1.0, "rewards": None}
    labels = "abc"[: len(objectives)]
    parts: Any = {label: SimpleNamespace(**part | settings.get(label, {})) for label in labels}
    return Mixture(dict(zip(labels, objectives, strict=True)), parts)


def test_phases_keep_their_side_of_the_students() -> None:
    first = Fake(Phase("x"), Phase(STUDENT, 2), Phase("y"), Phase("z", 4))
    found = mixture(first, Fake(Phase("w"), Phase(STUDENT, 3)), Fake()).phases(0)
    assert found == (Phase("x"), Phase("w"), Phase(STUDENT, 3), Phase("y"), Phase("z", 4))


def test_an_objective_takes_part_from_its_start_to_before_its_stop() -> None:
    mixed = mixture(Fake(), Fake(), a={"stop": 2}, b={"start": 2, "stop": 4})
    assert [mixed._taking_part(step) for step in range(5)] == [["a"], ["a"], ["b"], ["b"], []]


def test_all_objectives_look_at_the_models() -> None:
    objectives = Fake(), Fake()
    mixture(*objectives).check_models("student", "teacher")
    assert [one.calls for one in objectives] == [[("student", "teacher")]] * 2


def test_every_objective_finds_its_own_sums() -> None:
    objectives = Fake(), Fake()
    mixed = mixture(*objectives)
    mixed.active = ["a", "b"]
    sums = {"a/penalty": torch.tensor(1.0), "b/penalty": torch.tensor(2.0), "b/samples": torch.tensor(3.0)}
    policies = SimpleNamespace(aliased=lambda sets: torch.no_grad())
    ctx: Any = SimpleNamespace(sums=dict(sums), policies=policies)
    mixed.after_step(ctx)
    assert [one.calls for one in objectives] == [[{"penalty": 1.0}], [{"penalty": 2.0, "samples": 3.0}]]
    assert ctx.sums == sums


def test_metrics_of_one_name_are_averaged_or_the_largest() -> None:
    found = {}
    for label, value in (("a", 1.0), ("b", 4.0)):
        metrics = {"health/x/mean": value, "health/x/max": -value, "objective/kl/mean": value}
        found[label] = Experience({}, torch.empty(0), None, [], metrics=metrics)
    merged = mixture(Fake(), Fake())._merged(found)
    averaged = {"health/x/mean": 2.5, "health/x/max": -1.0}
    assert merged == averaged | {"objective/a_kl/mean": 1.0, "objective/b_kl/mean": 4.0}


def test_a_weight_set_is_shared_by_those_that_move_it_alike() -> None:
    rules = ({"old": "current"}, {"old": "own", "reference": "fixed"}, {"old": "current", "reference": "fixed"})
    mixed = mixture(*(Fake(policies=rule) for rule in rules))
    plain = {"old": "old", "reference": "reference"}
    assert mixed.sets == {"a": {"old": "old"}, "b": {"old": "old_2", "reference": "reference"}, "c": plain}
    assert mixed.blueprint().policies == {"old": "current", "old_2": "own", "reference": "fixed"}


@dataclass
class Rewarded:
    """A context with rewards and a signal floor."""

    rewards: Any
    signal: SignalFloor = field(default_factory=SignalFloor)


def test_an_objective_sees_its_own_rewards() -> None:
    rewards = SimpleNamespace(part=lambda chosen: ("part", chosen))
    all_of_them, nothing, own = SimpleNamespace(rewards=None), Rewarded(None), SimpleNamespace(rewards={"motion": 1.0})
    given: Any = Rewarded(rewards)
    assert _own_view(given, "a", own).rewards == ("part", {"motion": 1.0})  # type: ignore[arg-type]
    assert _own_view(given, "a", all_of_them).rewards is rewards  # type: ignore[arg-type]
    assert _own_view(nothing, "a", own).rewards is None  # type: ignore[arg-type]
    _own_view(given, "a", own).signal.has_signal(torch.ones(2), "motion")  # type: ignore[arg-type]
    assert set(given.signal.state_dict()) == {"a/motion"}, "a floor of its own, saved with the others"
