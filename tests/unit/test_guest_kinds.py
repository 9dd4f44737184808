"""Every call into a plugin of every kind ends in a `PluginError` with the plugin's own line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vidalign import build, registry
from vidalign.bench import cost
from vidalign.errors import PluginError, RecipeError
from vidalign.evaluation import evaluator, judging
from vidalign.evaluation.metrics.base import Metric
from vidalign.objectives.base import Objective
from vidalign.recipe import load_recipe
from vidalign.recipe.schema import Choice, RewardChoice
from vidalign.recipe.source_map import Node
from vidalign.recipe.typed import choose
from vidalign.rewards.base import CompositeReward, ScoreRequest, TrainableReward
from vidalign.rewards.discriminator import DiscriminatorReward
from vidalign.students.video import Sampler
from vidalign.teachers.pipeline import PipelineTeacher
from vidalign.workflows import merge_scores

CLIPS = torch.rand(2, 3, 3, 8, 8)
REQUEST = ScoreRequest(CLIPS, ["a", "b"], torch.arange(2))


def fail(*args: Any, **kwargs: Any) -> Any:
    raise KeyError("on purpose")


class Student(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fail()


class Learns(TrainableReward):
    """Fails in whichever method it is told to."""

    name = role = "learns"
    updates = 1
    broken = ""

    def __init__(self) -> None:
        self.network = Student()
        if self.broken in ("attach", "learn", "warm_up", "state_dict", "load_state_dict", "blueprint"):
            setattr(self, self.broken, fail)

    @classmethod
    def from_recipe(cls, recipe: Any, spec: Any, features: Any) -> Learns:
        return fail() if cls.broken == "from_recipe" else cls()

    @classmethod
    def cost(cls, recipe: Any, sizes: Any) -> Any:
        return fail()

    def attach(self, ctx: Any) -> None: ...
    def learn(self, request: Any) -> None: ...
    def score(self, clips: torch.Tensor, prompts: Any) -> Any:
        return fail()


class Costly(Objective):
    name = "costly"
    cost = blueprint = check_models = phases = staticmethod(fail)  # type: ignore[assignment]


class Made(Metric):
    name = "made"

    def __init__(self, config: Any = None) -> None:
        fail()


class Scores(Metric):
    name = "scores"
    score = grade = staticmethod(fail)  # type: ignore[assignment]


class Settings(Metric):
    name = "settings"

    @dataclass
    class Config:
        def __post_init__(self) -> None:
            fail()


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    registry.register("rewards", "learns")(Learns)
    registry.register("objectives", "costly")(Costly)
    for metric in (Made, Scores, Settings):
        registry.register("metrics", metric.name)(metric)
    monkeypatch.setattr(Learns, "broken", "")


def recipe(**changes: Any) -> Any:
    trainer = SimpleNamespace(reward_timeout=0.0, on_reward_timeout="stop", prompts_per_step=2)
    chosen, weights = {"learns": RewardChoice("learns")}, {"learns": 1.0}
    values = {"rewards": chosen, "reward_weights": weights, "trainer": trainer, "objectives": {}, "seed": 0}
    values |= {"discriminator": None, "student": None, "data": SimpleNamespace(frames=3)}
    return SimpleNamespace(**values | changes)


def learner(broken: str = "") -> CompositeReward:
    Learns.broken = broken
    rewards = build.build_rewards(recipe(), None, None)
    assert rewards is not None
    return rewards


def discriminator(made: Callable[..., Any]) -> Any:
    """The network of a discriminator that `made` makes."""
    kind = type("Judge", (), {"Config": object, "from_recipe": staticmethod(made)})
    registry.register("discriminators", "judge")(kind)
    section = SimpleNamespace(name="judge", config=SimpleNamespace(updates=1))
    return DiscriminatorReward.from_recipe(recipe(discriminator=section), None, None).network  # type: ignore[arg-type]


def teacher(**methods: Any) -> Any:
    made = type("Taught", (), {"offers": ("clips",), "Config": object, **methods})
    made.from_recipe = staticmethod(lambda *a: fail() if not methods else made())  # type: ignore[attr-defined]
    registry.register("teachers", "taught")(made)
    return build.build_teacher(recipe(teacher=SimpleNamespace(name="taught", config=None)), 3, None)


def objective() -> Any:
    return build.build_objective(recipe(objective=SimpleNamespace(name="costly", config=None)))


def costs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cost of a step of a built-in objective with a reward that learns."""
    monkeypatch.setattr(cost, "build_objective", lambda recipe: SimpleNamespace(cost=lambda sizes: cost.Cost()))
    kind = SimpleNamespace(sizes=lambda student, frames: (1, Sampler(), None))
    monkeypatch.setattr(cost, "student_kind", lambda recipe: kind)
    return next(cost.step_costs(recipe()))


def pipeline(folder: Path, made: Callable[..., Any]) -> Any:
    shape: Any = SimpleNamespace(frames=3, height=8, width=8)
    teacher = PipelineTeacher(lambda: made, "pipes", shape, folder)
    return teacher.clips(["a circle"], [torch.Generator()])


CALLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "reward, made": ("reward 'learns'", lambda: learner("from_recipe")),
    "reward, attached": ("reward 'learns'", lambda: learner("attach").trainable[0].attach(None)),  # type: ignore
    "reward, warm-up": ("reward 'learns'", lambda: learner("warm_up").warm_up(None)),  # type: ignore
    "reward, learning": ("reward 'learns'", lambda: learner("learn").trainable[0].learn(REQUEST)),
    "reward, scoring": ("reward 'learns'", lambda: learner().score(CLIPS, ["a", "b"])),
    "reward, saved": ("reward 'learns'", lambda: learner("state_dict").state_dict()),
    "reward, restored": ("reward 'learns'", lambda: learner("load_state_dict").load_state_dict({"learns": {}})),
    "reward, blueprint": ("reward 'learns'", lambda: learner("blueprint").trainable[0].blueprint()),
    "reward, network": ("reward 'learns'", lambda: learner().trainable[0].network(CLIPS)),
    "discriminator, made": ("discriminator 'judge'", lambda: discriminator(fail)),
    "discriminator, judging": ("discriminator 'judge'", lambda: discriminator(lambda *a: Student())(CLIPS)),
    "teacher, made": ("teacher 'taught'", lambda: teacher()),
    "teacher, clips": ("teacher 'taught'", lambda: teacher(clips=fail).clips(["a"], [])),
    "teacher, velocity": ("teacher 'taught'", lambda: teacher(velocity=fail).velocity(CLIPS, 1.0, None)),
    "objective, cost": ("objective 'costly'", lambda: objective().cost(None)),
    "objective, blueprint": ("objective 'costly'", lambda: objective().blueprint()),
    "objective, models": ("objective 'costly'", lambda: objective().check_models(None, None)),
    "objective, phases": ("objective 'costly'", lambda: objective().phases(0)),
    "metric, made": ("metric 'made'", lambda: evaluator.build_metrics({"made": {}})),
    "metric, made for merging": ("metric 'made'", lambda: merge_scores._metric(None, "made")),
    "metric, scoring": ("metric 'scores'", lambda: judging.scored(Scores(), CLIPS, ["a", "b"], 2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails(name: str) -> None:
    label, call = CALLS[name]
    with pytest.raises(PluginError, match=f"the {label} failed .*test_guest_kinds.py:\\d+ - KeyError: 'on purpose'"):
        call()


def test_the_cost_of_a_reward_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match="the reward 'learns' failed .* KeyError"):
        costs(monkeypatch)


@pytest.mark.parametrize("made", [fail, lambda **kwargs: None, lambda **kwargs: SimpleNamespace(frames=["odd"])])
def test_a_pipeline_that_fails(made: Any, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="the pipeline 'pipes' failed"):
        pipeline(tmp_path, made)


def test_settings_that_fail_are_a_mistake_of_the_recipe() -> None:
    problems: list[Any] = []
    made = choose("metrics", Node({"name": Node("settings", "line 2")}, "line 1"), "metric", problems, Choice)
    assert made is not None and made.name == "" and len(problems) == 1
    assert "the metric 'settings' failed" in problems[0].what and "line 2" in problems[0].where


LACKING = {
    "objectives": "needs, Config",
    "teachers": "offers, Config, from_recipe",
    "metrics": "name, version, judges, Config",
    "discriminators": "Config, from_recipe",
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_class_without_what_its_kind_has(kind: str) -> None:
    registry.register(kind, "bare")(type("Bare", (), {}))
    with pytest.raises(PluginError, match=f"'bare' among {kind} has no {LACKING[kind]}"):
        registry.get(kind, "bare")


def test_a_bare_objective_in_a_recipe(tmp_path: Path) -> None:
    registry.register("objectives", "bare")(type("Bare", (), {}))
    file = tmp_path / "recipe.yaml"
    file.write_text("student: {path: world}\nobjective: {name: bare}\n")
    with pytest.raises(RecipeError, match="'bare' among objectives has no needs"):
        load_recipe(file, [])


def metric_giving(found: Any) -> Any:
    return type("Gives", (Metric,), {"name": "gives", "score": lambda self, clips, prompts: found})()


@pytest.mark.parametrize("values", [[1, 2.0], torch.tensor([1.0, 2.0]).double().numpy(), torch.tensor([1, 2])])
def test_other_numbers_of_a_metric_are_converted(values: Any) -> None:
    found = judging.scored(metric_giving({"a": values}), CLIPS, ["a", "b"], 2)
    assert found["gives/a"].dtype == torch.float32 and found["gives/a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0, 2.0], "'gives' returned a list"),
        ({"a": "high"}, "'gives' returned str under 'a'"),
        ({"a": None}, "'gives' returned NoneType under 'a'"),
        ({"a": 1.0}, "'gives' returned no list of values for 2 prompts"),
        ({"a": [1.0]}, "'gives' returned 1 values for 2 prompts"),
    ],
)
def test_anything_else_of_a_metric_is_refused_by_name(found: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        judging.scored(metric_giving(found), CLIPS, ["a", "b"], 2)


def test_a_metric_cannot_change_the_clips() -> None:
    def score(self: Any, clips: torch.Tensor, prompts: Any) -> dict[str, torch.Tensor]:
        return {"a": clips.mul_(0)[:, 0, 0, 0, 0]}

    clips = torch.ones(2, 1, 3, 4, 4)
    judging.scored(type("Gives", (Metric,), {"name": "gives", "score": score})(), clips, ["a", "b"], 2)
    assert bool((clips == 1).all())
