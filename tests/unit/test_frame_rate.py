"""Judges that sample by seconds are given the frame rate of the clips, wherever they judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign import registry
from vidalign.asked import asks_for
from vidalign.build import build_rewards
from vidalign.errors import RecipeError, UserError
from vidalign.evaluation.evaluator import Evaluator, build_metrics
from vidalign.evaluation.judging import scored
from vidalign.evaluation.metrics.base import Metric
from vidalign.recipe import load_recipe
from vidalign.rewards.base import CompositeReward
from vidalign.students.video.kind import Video
from vidalign.students.video.spec import VideoStudentSpec
from vidalign.testing import check_metric, check_reward
from vidalign.workflows.evaluate import settings_of_judges

CLIPS = torch.zeros(2, 6, 3, 4, 4)


class Rate:
    """The frame rate itself."""

    name = "rate"
    judges = "clips"

    def score(self, clips: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        values = torch.full((len(prompts),), fps)
        return {"rate": values.where(clips.isfinite().flatten(1).all(1), torch.nan)}


class RateMetric(Metric):
    """The frame rate itself."""

    name = "rate"

    def score(  # type: ignore[override]
        self, clips: Tensor, prompts: Sequence[str], fps: float
    ) -> dict[str, Tensor]:
        return {"all": torch.full((len(prompts),), fps).where(clips.isfinite().flatten(1).all(1), torch.nan)}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    registry.register("rewards", "rate")(Rate)
    registry.register("metrics", "rate")(RateMetric)


def load(*overrides: str) -> Any:
    return load_recipe("world/astrolabe", ["~rewards", "rewards.rate=1.0", *overrides])


def test_a_reward_is_given_the_rate_of_the_student() -> None:
    for change, expected in (("student.fps=24", 24.0), ("trainer.steps=1", 8.0)):
        recipe = load(change)
        rewards = build_rewards(recipe, Video.spec(recipe.student), None)
        assert rewards is not None
        assert rewards.score(CLIPS, ["a", "b"])["rate"].tolist() == [expected] * 2
        assert rewards.part({"rate": 1.0}).score(CLIPS, ["a", "b"])["rate"].tolist() == [expected] * 2


def test_a_metric_is_given_it_too() -> None:
    (metric,) = build_metrics({"rate": {}}, lambda: 16.0)
    assert scored(metric, CLIPS, ["a", "b"], 2)["rate/all"].tolist() == [16.0] * 2
    recipe = load("student.fps=12", "evaluation.metrics={rate: {}}")
    assert [metric.fps for metric in Evaluator.from_recipe(recipe, None).metrics] == [12.0]


def test_no_rate_is_one_error_that_names_the_key() -> None:
    for make in (
        lambda: CompositeReward({"mine": Rate()}, {"mine": 1.0}),  # type: ignore[dict-item]
        lambda: build_metrics({"rate": {}}),
    ):
        with pytest.raises(UserError, match=r"no frame rate to sample by - student\.fps"):
            make()
    assert not asks_for(registry.get("rewards", "clip_score"), "fps")
    assert build_metrics({"flow_motion": {}})[0].fps is None, "its default is taken"


def test_a_student_that_has_none_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Still:
        width: int = 1

    assert any(field.name == "fps" for field in fields(VideoStudentSpec))
    monkeypatch.setattr(Video, "spec_type", Still)
    with pytest.raises(RecipeError, match=r"the reward 'rate' has no frame rate to sample by.*student\.fps"):
        load()


def test_the_kit_gives_it() -> None:
    check_reward(Rate)
    check_metric(RateMetric)


def test_results_name_the_settings_of_their_judges() -> None:
    """The frames that each judge saw, and how many the clips have."""
    recipe = load("student.fps=12", "rewards.hps={name: hps_v3, path: /tmp, frames: 5}")
    (clip,) = build_metrics({"clip_score": {"frames": 3}})
    told = settings_of_judges(recipe, [clip])
    assert told.keys() == {"reward hps", "metric clip_score", "clips"} and told["clips"] == "12 frames a second"
    assert " path=tmp " in told["reward hps"] and " frames=5 " in told["reward hps"]
    assert " frames=3 " in told["metric clip_score"]
