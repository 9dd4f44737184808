"""Evaluation: paired comparison, the same noise before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign import registry
from vidalign.data.prompts import GroupedPrompts
from vidalign.data.source import open_source
from vidalign.errors import RecipeError
from vidalign.evaluation import judging
from vidalign.evaluation.comparison import compare, save_evaluation
from vidalign.evaluation.evaluator import TRAINED, Evaluation, Evaluator, build_metrics
from vidalign.evaluation.intervals import estimate
from vidalign.evaluation.metrics.base import Metric
from vidalign.recipe import load_recipe
from vidalign.report.table import evaluation_table
from vidalign.rewards.base import CompositeReward
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.students.video.rollout import RolloutPlan
from vidalign.worlds.video import captions

PROMPTS = list(captions.prompts("held_out")[:5])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- comparison ---


def judged(values: Tensor, name: str = "composite") -> Evaluation:
    prompts = [f"prompt {n}" for n in range(len(values))]
    return Evaluation(prompts, {("auditor", name): values}, torch.zeros(1, 1, 3, 2, 2))


def test_comparison_is_paired() -> None:
    """Prompts differ by far more than the students do; only the paired difference shows the gain."""
    before = 10 * numbers(50)
    gain = 0.2 + 0.01 * numbers(50, seed=1)
    (row,) = compare(judged(before), judged(before + gain), judged(before + 1))
    assert (row.group, row.metric, row.verdict) == ("auditor", "composite", "better")
    assert (row.before, row.after) == (
        pytest.approx(before.mean().item()),
        pytest.approx((before + gain).mean().item()),
    )
    assert row.difference == pytest.approx(float(gain.mean())) and row.interval == pytest.approx(
        estimate(gain).interval
    )
    assert row.goal == pytest.approx(float(before.mean()) + 1)
    (row,) = compare(judged(before + gain), judged(before))
    assert row.verdict == "worse" and row.goal is None
    (row,) = compare(judged(before), judged(before + numbers(50, seed=2)))
    assert row.verdict == "unclear"
    (row,) = compare(judged(before[:7]), judged(before[:7] + 1))
    assert row.verdict == "too few prompts"
    assert "fewer than 8" in str(evaluation_table([row]).caption)


def test_a_pair_with_a_failure_is_left_out() -> None:
    before, after = torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([2.0, 9.0, 4.0])
    (row,) = compare(judged(before), judged(after))
    assert row.difference == 1.0 and row.interval == (1.0, 1.0)


def test_other_prompts_cannot_be_compared() -> None:
    with pytest.raises(AssertionError, match="same prompts"):
        compare(judged(torch.zeros(2)), judged(torch.zeros(3)))


# --- generation ---


class Negative(Metric):
    """Minus the mean of a clip."""

    name = "negative"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"other": torch.zeros(len(clips)), "composite": -clips.flatten(1).mean(1)}


class Mean:
    """The mean of a clip."""

    name = "mean"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"mean": clips.flatten(1).mean(1)}


class Fixed(GroupedPrompts):
    """The prompts in their own order."""

    def __getitem__(self, sample: int) -> str:
        return self.groups[0][sample]


def evaluator(prompts: Sequence[str] = PROMPTS, seeds: int = 1, *metrics: Metric) -> Evaluator:
    rewards = CompositeReward({"mean": Mean()}, {"mean": 2.0})
    return Evaluator(Fixed([prompts], 0), metrics or (Negative(),), rewards, seeds=seeds)


def noisy(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.rand(2, 3, 4, 4, generator=g) for g in generators])


def test_noise_depends_on_prompt_and_seed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        seen.append(noisy(prompts, generators))
        return seen[-1]

    before, after = evaluator(seeds=2)(watched), evaluator(seeds=2)(watched)
    assert len(seen) == 4 and torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:]))
    rows = torch.cat(seen[:2]).flatten(1)
    assert len({tuple(row.tolist()) for row in rows}) == 10, "every prompt and seed has noise of its own"
    monkeypatch.setattr(judging, "BATCH", 2)
    in_parts = evaluator(seeds=2)(noisy)
    for key, values in before.metrics.items():
        assert torch.equal(values, after.metrics[key]) and torch.equal(values, in_parts.metrics[key])


def test_metrics_are_means_over_the_seeds_of_a_prompt() -> None:
    def generate(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        calls.append(len(prompts))
        base = torch.arange(len(prompts), dtype=torch.float32) + 10 * len(calls)
        return base.reshape(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4)

    calls: list[int] = []
    found = evaluator(seeds=3)(generate)
    assert found.metrics[TRAINED, "composite"].tolist() == [20.0, 21.0, 22.0, 23.0, 24.0]
    assert found.metrics[TRAINED, "mean"].tolist() == [20.0, 21.0, 22.0, 23.0, 24.0]
    assert found.clips.shape == (5, 2, 3, 4, 4) and len(found.output_scores) == 5
    assert found.headline == ("negative", "composite"), "the composite of what is not trained on"
    assert found.output_scores[1] == {"negative": -11.0, "trained": 11.0}, "of the clip that is shown"
    assert found.health() == {"health/held_out/mean": -22.0, "health/held_out_trained/mean": 22.0}


def test_a_failed_clip_does_not_spoil_its_prompt() -> None:
    scores = iter([torch.tensor([1.0, torch.nan]), torch.tensor([3.0, 5.0])])

    class Sometimes(Metric):
        name = "sometimes"

        def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            return {"value": next(scores)}

    assert evaluator(PROMPTS[:2], 2, Sometimes())(noisy).metrics["sometimes", "value"].tolist() == [2.0, 5.0]


def test_no_other_score_takes_the_place_of_a_judge_that_failed() -> None:
    """The auditor's first judgement decides; early stopping and `--best` would compare two scales."""
    scores = iter([torch.tensor([0.8, 0.8]), torch.tensor([torch.nan, torch.nan]), torch.tensor([0.7, 0.9])])

    class Once(Metric):
        name = "once"

        def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            return {"composite": next(scores)}

    judge = evaluator(PROMPTS[:2], 1, Once())
    held_out = [judge(noisy).health().get("health/held_out/mean") for _ in range(3)]
    assert held_out == [pytest.approx(0.8), None, pytest.approx(0.8)]


def test_a_judge_may_be_silent_on_some_of_the_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A value that is named for one batch only, and nothing said of the ground truth."""

    class Rare(Metric):
        name = "rare"

        def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            values = torch.ones(len(prompts))
            return {"all": values, "last": values} if len(prompts) == 1 else {"all": values}

    monkeypatch.setattr(judging, "BATCH", 2)
    judged = evaluator(PROMPTS, 1, Rare())(noisy)
    assert judged.metrics["rare", "last"].isnan().tolist() == [True] * 4 + [False]
    silent = Evaluation(judged.prompts, {("rare", "all"): judged.metrics["rare", "all"]}, judged.clips)
    goals = {row.metric: row.goal for row in compare(judged, judged, silent) if row.group == "rare"}
    assert goals == {"all": 1.0, "last": None}


def test_the_total_of_rewards_rises_with_what_is_wanted() -> None:
    """A weight below 0 is a penalty; one of 0 has no part, not even where its reward failed."""
    scores = {"good": torch.tensor([1.0, 0.0]), "bad": torch.tensor([0.0, 1.0]), "logged": torch.full((2,), torch.nan)}
    for weights, expected in (
        ({"good": 1.0, "bad": -3.0, "logged": 0.0}, [0.25, -0.75]),
        ({"good": 1.0, "bad": -1.0}, [0.5, -0.5]),
        ({"bad": -1.0}, [0.0, -1.0]),
        ({"good": 2.0}, [1.0, 0.0]),
    ):
        rewards = CompositeReward(dict.fromkeys(weights, Mean()), weights)
        assert rewards.total({name: scores[name] for name in weights}).tolist() == expected
    logged = Evaluator(Fixed([PROMPTS], 0), [], CompositeReward({"mean": Mean()}, {"mean": 0.0}))(noisy)
    assert set(logged.metrics) == {(TRAINED, "mean")}, "of weight 0: there is no composite"


def test_a_judge_that_knows_no_prompt_is_left_out() -> None:
    """Of prompts that are no captions the world's auditor says nothing: the rewards stand alone."""
    found = evaluator(["a whale that sings"], 1, *build_metrics({"world_auditor": {}}))(noisy)
    assert set(found.metrics) == {(TRAINED, "mean"), (TRAINED, "composite")}
    assert found.headline == (TRAINED, "composite")
    alone = Evaluator(Fixed([["a whale that sings"]], 0), [])(noisy)
    assert not alone.metrics and alone.headline is None and alone.health() == {} and len(alone.clips) == 1


def test_answers_are_graded_and_kept() -> None:
    """A language student is judged by the same evaluator: its responses, a family outside of an example is NaN."""
    source = open_source("tokens:held_out", 0)
    judge = Evaluator(source, build_metrics(source.judges), count=40)
    found = judge(lambda examples, _: [example.response for example in examples])
    assert found.metrics["exact_match", "all"].tolist() == [1.0] * 40 and found.headline == ("exact_match", "all")
    assert found.responses[3] == source[3].response and not len(found.clips)
    wrong = Evaluator(source, build_metrics(source.judges), count=4)(lambda examples, _: ["= x"] * len(examples))
    assert wrong.health() == {"health/held_out/mean": 0.0}


def test_two_students_start_from_the_same_noise() -> None:
    transformer = dict(
        patch_size=[1, 8, 8],
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=3,
        out_channels=3,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=64,
    )
    spec = VideoStudentSpec.from_dict({"transformer": transformer, "prediction": "x0"})
    drawn: list[Tensor] = []
    for seed in range(2):
        student: Any = VideoStudent.from_spec(spec, seed)

        def draw(plan: RolloutPlan, generators: list[torch.Generator], student: Any = student) -> Any:
            noise = VideoStudent.draw_noise(student, plan, generators)
            drawn.append(torch.cat([noise.initial.flatten(), noise.renoise.flatten()]))
            return noise

        student.draw_noise = draw
        codec = SimpleNamespace(decode=lambda x: x.clamp(0, 1))
        generate = student.sampler(6, features=lambda p: torch.ones(len(p), 4, 8), codec=codec)
        clips = generate(PROMPTS[:2], [torch.Generator().manual_seed(n) for n in range(2)])
        assert clips.shape == (2, 6, 3, 32, 32)
    assert torch.equal(*drawn)


def test_ground_truth_is_judged_by_the_real_judges() -> None:
    rewards = {name: registry.get("rewards", name)() for name in ("text_alignment", "visual_quality")}
    source = open_source("world:held_out", 0)
    both = CompositeReward(rewards, dict.fromkeys(rewards, 1.0))
    real = Evaluator(source, build_metrics(source.judges), both, count=2)
    truth, auditor = real.truth(), ("world_auditor", "composite")
    assert truth is not None and truth.headline == auditor
    assert truth.metrics[TRAINED, "composite"].min() > 0.9 and truth.metrics[auditor].min() > 0.9
    grey = real(lambda prompts, _: torch.full((len(prompts), 12, 3, 32, 32), 0.5))
    assert (grey.metrics[auditor] < truth.metrics[auditor] - 0.2).all()


# --- prompts and files ---


def recipe(prompts: str, metrics: dict[str, Any] | None = None, count: int = 10) -> Any:
    settings = SimpleNamespace(prompts=prompts, count=count, metrics=metrics, seeds=1, frames=12)
    return SimpleNamespace(evaluation=settings, judged_prompts=prompts or "world:basic/unseen", seed=3)


def test_held_out_prompts_are_distinct_and_of_no_seed() -> None:
    found = Evaluator.from_recipe(recipe(""), None).prompts
    assert len(set(found)) == 10 and set(found) <= set(captions.prompts("basic/unseen"))
    other = recipe("")
    other.seed = 4
    assert Evaluator.from_recipe(other, None).prompts == found
    everything = Evaluator.from_recipe(recipe("", count=1000), None).prompts
    assert sorted(everything) == sorted(captions.prompts("basic/unseen"))


def test_metrics_are_the_recipe_s_or_what_the_source_offers(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a whale that sings\n", encoding="utf-8")
    names = [
        [metric.name for metric in Evaluator.from_recipe(made, None).metrics]
        for made in (recipe(""), recipe(str(file)), recipe("", {"motion": {"references": 2}}), recipe("", {}))
    ]
    assert names == [["world_auditor"], [], ["motion"], []]


def test_the_file_holds_every_prompt(tmp_path: Path) -> None:
    values = torch.tensor([0.25, 0.5])
    path = tmp_path / "evaluation.json"
    save_evaluation(path, judged(values), judged(values + 0.25), judged(values + 0.5), {"seed": "3"})
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["header"] == {"seed": "3"} and document["prompts"] == ["prompt 0", "prompt 1"]
    assert document["values"]["after"] == {"auditor/composite": [0.5, 0.75]}
    assert set(document["values"]) == {"before", "after", "ground_truth"}


# --- what validate says of the judges ---


def told(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe("world/sft", list(overrides))
    return str(caught.value)


def test_metrics_of_a_recipe_are_checked() -> None:
    assert "'motoin' is not among the metrics - override 1 - did you mean 'motion'?" in told(
        "evaluation.metrics={motoin: {}}"
    )
    assert "unknown key 'evaluation.metrics.motion.reference' - override 1 - did you mean 'references'?" in told(
        "evaluation.metrics={motion: {reference: 2}}"
    )
    assert "the metric 'diversity' is for benchmarks" in told("evaluation.metrics={diversity: {}}")
    assert "the metric 'exact_match' cannot judge a video student" in told("evaluation.metrics={exact_match: {}}")


def test_prompts_that_nobody_judges_are_said(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a whale that sings\n", encoding="utf-8")
    what = "nothing judges the evaluation prompts"
    unjudged = load_recipe("world/sft", [f"evaluation.prompts={file}"])
    assert any(what in problem.what for problem in unjudged.warnings)
    for more in ("evaluation.metrics={motion: {}}", "rewards.visual_quality=0", "evaluation.prompts=world:unseen"):
        recipe = load_recipe("world/sft", [f"evaluation.prompts={file}", more][-2 if "prompts" not in more else -1 :])
        assert not any(what in problem.what for problem in recipe.warnings), more
