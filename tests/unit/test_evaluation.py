"""Evaluation: intervals against the normal approximation, paired comparison, the same noise before and after."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vidalign.bench.evaluation import Evaluation, compare, ground_truth, held_out_prompts, judge_student

from vidalign.bench import evaluation
from vidalign.evaluation.bootstrap import interval
from vidalign.rollout import RolloutPlan
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.tracking.table import evaluation_table
from vidalign.worlds.video import captions
from vidalign.worlds.video.judges import AUDITOR, TRAINED

PROMPTS = list(captions.prompts("held_out")[:5])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- bootstrap ---


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.95996), (0.8, 1.28155)])
def test_interval_is_the_normal_one_for_many_prompts(level: float, z: float) -> None:
    values = 3 + 0.5 * numbers(400)
    low, high = interval(values, level)
    half = z * float(values.std(unbiased=False)) / math.sqrt(400)
    assert abs(low - (float(values.mean()) - half)) < 0.1 * half
    assert abs(high - (float(values.mean()) + half)) < 0.1 * half


def test_interval_of_two_values_by_hand() -> None:
    """Of 0 and 1 the mean of a resample is 0, 1/2, 1/2 or 1: a quarter of them is 0."""
    values = torch.tensor([0.0, 1.0])
    assert interval(values) == (0.0, 1.0)
    assert interval(values, 0.4) == (0.5, 0.5)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    hits = sum(low <= 0 <= high for low, high in (interval(numbers(40, seed=seed)) for seed in range(200)))
    assert 0.88 < hits / 200 < 0.98  # percentile intervals of 40 values cover a little less than 95 %


def test_interval_is_deterministic_and_leaves_out_failures() -> None:
    values = numbers(30)
    assert interval(values) == interval(values)
    assert interval(torch.cat([values, torch.full((5,), torch.nan)])) == interval(values)
    low, high = interval(2 * values + 7)
    assert (low, high) == (pytest.approx(2 * interval(values)[0] + 7), pytest.approx(2 * interval(values)[1] + 7))
    for few in (torch.empty(0), torch.tensor([1.0]), torch.tensor([1.0, torch.nan])):
        assert all(math.isnan(x) for x in interval(few))


# --- comparison ---


def judged(values: Tensor, name: str = "composite") -> Evaluation:
    prompts = [f"prompt {n}" for n in range(len(values))]
    return Evaluation(prompts, {(AUDITOR, name): values}, torch.zeros(1, 1, 3, 2, 2))


def test_comparison_is_paired() -> None:
    """Prompts differ by far more than the students do; only the paired difference shows the gain."""
    before = 10 * numbers(50)
    gain = 0.2 + 0.01 * numbers(50, seed=1)
    (row,) = compare(judged(before), judged(before + gain), judged(before + 1))
    assert (row.group, row.metric, row.verdict) == (AUDITOR, "composite", "better")
    assert (row.before, row.after) == (
        pytest.approx(before.mean().item()),
        pytest.approx((before + gain).mean().item()),
    )
    assert row.difference == pytest.approx(float(gain.mean())) and row.interval == pytest.approx(interval(gain))
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


@pytest.fixture
def cheap_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of a clip as its only score."""

    def judge(clips: Tensor, prompts: list[str]) -> dict[tuple[str, str], Tensor]:
        mean = clips.flatten(1).mean(1)
        return {(TRAINED, "composite"): mean, (AUDITOR, "composite"): -mean}

    monkeypatch.setattr(evaluation, "judge_world", judge)


def noisy(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.rand(2, 3, 4, 4, generator=g) for g in generators])


def test_noise_depends_on_prompt_and_seed_only(cheap_judge: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def watched(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        seen.append(noisy(prompts, generators))
        return seen[-1]

    before = judge_student(watched, PROMPTS, 2)
    after = judge_student(watched, PROMPTS, 2)
    assert len(seen) == 4 and torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:]))
    rows = torch.cat(seen[:2]).flatten(1)
    assert len({tuple(row.tolist()) for row in rows}) == 10, "every prompt and seed has noise of its own"
    monkeypatch.setattr(evaluation, "BATCH", 2)
    in_parts = judge_student(noisy, PROMPTS, 2)
    for key, values in before.metrics.items():
        assert torch.equal(values, after.metrics[key]) and torch.equal(values, in_parts.metrics[key])


def test_metrics_are_means_over_the_seeds_of_a_prompt(cheap_judge: None) -> None:
    def generate(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        calls.append(len(prompts))
        base = torch.arange(len(prompts), dtype=torch.float32) + 10 * len(calls)
        return base.reshape(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4)

    calls: list[int] = []
    found = judge_student(generate, PROMPTS, 3)
    assert found.metrics[TRAINED, "composite"].tolist() == [20.0, 21.0, 22.0, 23.0, 24.0]
    assert found.clips.shape == (5, 2, 3, 4, 4) and len(found.clip_metrics) == 5
    assert found.clip_metrics[1] == {"trained": 11.0, "auditor": -11.0}, "of the clip that is shown"
    assert found.health() == {"health/held_out/mean": -22.0, "health/held_out_trained/mean": 22.0}


def test_a_failed_clip_does_not_spoil_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([torch.tensor([1.0, torch.nan]), torch.tensor([3.0, 5.0])])

    def judge(clips: Tensor, prompts: list[str]) -> dict[tuple[str, str], Tensor]:
        values = next(scores)
        return {(TRAINED, "composite"): values, (AUDITOR, "composite"): values}

    monkeypatch.setattr(evaluation, "judge_world", judge)
    assert judge_student(noisy, PROMPTS[:2], 2).metrics[AUDITOR, "composite"].tolist() == [2.0, 5.0]


def test_two_students_start_from_the_same_noise() -> None:
    transformer = dict(
        patch_size=[1, 8, 8], num_attention_heads=2, attention_head_dim=16, in_channels=3, out_channels=3,
        text_dim=8, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=64,
    )  # fmt: skip
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
        generate = evaluation.student_generator(student, lambda p: torch.ones(len(p), 4, 8), codec, 6)
        clips = generate(PROMPTS[:2], [torch.Generator().manual_seed(n) for n in range(2)])
        assert clips.shape == (2, 6, 3, 32, 32)
    assert torch.equal(*drawn)


def test_ground_truth_is_judged_by_the_real_judges() -> None:
    truth = ground_truth(PROMPTS[:2], 1, 12)
    assert truth.metrics[TRAINED, "composite"].min() > 0.9 and truth.metrics[AUDITOR, "composite"].min() > 0.9
    grey = judge_student(lambda prompts, _: torch.full((len(prompts), 12, 3, 32, 32), 0.5), PROMPTS[:2], 1)
    assert (grey.metrics[AUDITOR, "composite"] < truth.metrics[AUDITOR, "composite"] - 0.2).all()


# --- prompts and files ---


def recipe(count: int = 6, prompts: str = "", held_out: str = "world:basic/unseen") -> Any:
    settings = SimpleNamespace(prompts=prompts, count=count)
    return SimpleNamespace(evaluation=settings, data=SimpleNamespace(eval_prompts=held_out), seed=0)


def test_held_out_prompts_are_distinct_captions() -> None:
    found = held_out_prompts(recipe(count=10))
    assert len(set(found)) == 10 and set(found) <= set(captions.prompts("basic/unseen"))
    everything = held_out_prompts(recipe(count=1000))
    assert sorted(everything) == sorted(captions.prompts("basic/unseen"))


def test_prompts_that_the_world_cannot_judge_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(["a whale that sings", *PROMPTS]), encoding="utf-8")
    assert sorted(held_out_prompts(recipe(prompts=str(file)))) == sorted(PROMPTS)
    file.write_text("a whale that sings\n", encoding="utf-8")
    assert held_out_prompts(recipe(prompts=str(file))) == ["a whale that sings"], "shown, and not judged"


def test_the_file_holds_every_prompt(tmp_path: Path) -> None:
    values = torch.tensor([0.25, 0.5])
    path = tmp_path / "evaluation.json"
    evaluation.save_evaluation(path, judged(values), judged(values + 0.25), judged(values + 0.5), {"seed": "3"})
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["header"] == {"seed": "3"} and document["prompts"] == ["prompt 0", "prompt 1"]
    assert document["values"]["after"] == {f"{AUDITOR}/composite": [0.5, 0.75]}
    assert set(document["values"]) == {"before", "after", "ground_truth"}
