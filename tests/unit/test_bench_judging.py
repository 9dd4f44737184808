"""Metrics of the world and how a source of clips is judged: same noise for every row, means over seeds."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vidalign.bench.judging import Source, judge, judge_few, save_clips
from vidalign.bench.sections import EvaluationConfig
from vidalign.errors import PluginError
from vidalign.evaluation.metrics.base import Metric
from vidalign.worlds import health
from vidalign.worlds.video import captions, perturbations
from vidalign.worlds.video.metrics import Diversity, Drift, Motion, Quarters, WorldAuditor, WorldScorer
from vidalign.worlds.video.renderer import clips as render_clips

FALLS = "a large red circle falls"
STILL = next(c for c in captions.prompts("basic/train") if "still" in c)


def truth(prompts: list[str], frames: int = 12, seed: int = 0) -> Tensor:
    return render_clips(prompts, frames, generator=torch.Generator().manual_seed(seed))


# --- metrics ---


def test_other_prompts_are_not_judged() -> None:
    prompts = ["a whale that sings", FALLS]
    clips = truth([FALLS, FALLS])
    for metric in (WorldScorer(), WorldAuditor(), Motion()):
        for name, values in metric.score(clips, prompts).items():
            assert values.shape == (2,) and values[0].isnan() and values[1] > 0.5, name
    assert Diversity().score(clips, prompts)["seeds"].isnan().all()


def test_motion_of_a_frozen_and_of_a_true_clip() -> None:
    clips = truth([FALLS, FALLS, STILL])
    clips[1] = clips[1, :1]
    amount = Motion().score(clips, [FALLS, FALLS, STILL])["amount"]
    assert amount[0] > 0.7 and amount[1] == 0 and amount[2].isnan()


def test_diversity_of_one_clip_is_nought() -> None:
    prompts = [FALLS, STILL] * 6
    clips = truth(prompts)
    clips[1::2] = clips[1]
    falls, still = Diversity().score(clips, prompts)["seeds"].tolist()
    assert falls > 0.6 and still == pytest.approx(0, abs=1e-6)


def test_drift_is_a_series_over_chunks() -> None:
    clips = truth([FALLS, FALLS], frames=12)
    clips[1, 9:] = perturbations.blur(clips[1:, 9:], 2.0)[0]
    visual = Drift(Drift.Config(chunk_frames=3)).score(clips, [FALLS, FALLS])["visual"]
    assert visual.shape == (2, 4)
    torch.testing.assert_close(visual[0, :3], visual[1, :3], atol=0.02, rtol=0)
    assert visual[1, 3] < visual[0, 3] - 0.3


def test_quarters_show_where_a_clip_breaks() -> None:
    clips = truth([FALLS, FALLS], frames=16)
    clips[1, 12:] = perturbations.blur(clips[1:, 12:], 2.0)[0]
    found = Quarters().score(clips, [FALLS, FALLS])
    assert all(values[0] > 0.9 for values in found.values())
    assert found["last"][1] < 0.8 < found["first"][1] and found["least"][1] == found["last"][1]


# --- judging ---


class Mean(Metric):
    name = "mean"

    def score(self, clips: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        return {"all": clips.flatten(1).mean(1)}


class Spread(Metric):
    name = "spread"
    judges = "seeds"

    def score(self, clips: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        assert list(prompts) == PROMPTS * 3
        return {"all": clips.flatten(1).mean(1).view(3, -1).std(0)}


class Ends(Metric):
    name = "ends"
    judges = "long"

    def score(self, clips: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        series = clips.flatten(2).mean(2)
        return {"series": series, "first": series[:, 0]}


PROMPTS = ["one", "two", "three", "four"]
EVALUATION = EvaluationConfig(frames=2, seeds=[0, 1, 2], long_factor=2, long_prompts=2, curve_prompts=2, shown=3)
PROTOCOL: Any = SimpleNamespace(evaluation=EVALUATION, asked=PROMPTS, all_prompts=PROMPTS, held_out=PROMPTS[:3])


def noisy(frames: int) -> Any:
    def generate(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        return torch.stack([torch.rand(frames, 3, 4, 4, generator=g) for g in generators])

    return generate


def test_values_are_means_over_seeds_of_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidalign.evaluation import judging

    source, metrics = Source(noisy(2), noisy(4)), [Mean(), Spread(), Ends()]
    first = judge(source, PROTOCOL, metrics)
    per_seed = torch.stack([judging.outputs_of(noisy(2), PROMPTS, s).flatten(1).mean(1) for s in (0, 1, 2)])
    assert first.metrics["mean/all"] == pytest.approx(per_seed.mean(0).tolist())
    assert first.metrics["spread/all"] == pytest.approx(per_seed.std(0).tolist())
    monkeypatch.setattr(judging, "BATCH", 3)
    again = judge(source, PROTOCOL, metrics)
    assert again.metrics["mean/all"] == first.metrics["mean/all"] and torch.equal(again.shown, first.shown)
    assert judge_few(noisy(2), PROTOCOL, metrics) == {"mean/all": pytest.approx(per_seed[0, :2].mean().item())}


def test_a_metric_may_compare_more_clips_of_fewer_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clips are those of the evaluation seeds and of further ones, on the first prompts."""
    seen: list[Tensor] = []

    class Pairs(Spread):
        def sampled(self, prompts: int, seeds: int) -> tuple[int, int]:
            return 2, 4

        def score(self, clips: Tensor, prompts: list[str]) -> dict[str, Tensor]:
            assert list(prompts) == PROMPTS[:2] * 4
            seen.append(clips)
            return {"all": clips.flatten(1).mean(1).view(4, -1).std(0)}

    from vidalign.evaluation import judging

    values = judge(Source(noisy(2)), PROTOCOL, [Pairs()]).metrics["spread/all"]
    assert len(values) == 4 and all(map(math.isfinite, values[:2])) and all(map(math.isnan, values[2:]))
    expected = [judging.outputs_of(noisy(2), PROMPTS, seed)[:2] for seed in (0, 1, 2, 3)]
    assert torch.equal(seen[0], torch.cat(expected))
    assert Diversity(Diversity.Config(clips=4, prompts=64)).sampled(256, 1) == (64, 4)
    assert Diversity().sampled(32, 4) == (32, 4)
    with pytest.raises(ValueError, match="clips must be at least 2, or 0"):
        Diversity.Config(clips=1)


def test_long_clips_give_drift_and_its_change() -> None:
    found = judge(Source(noisy(2), noisy(4)), PROTOCOL, [Ends()])
    assert len(found.drift["ends/series"]) == 4 and "ends/first" not in found.drift
    change, first = found.metrics["ends/series"], found.metrics["ends/first"]
    assert len(change) == 4 and all(math.isnan(v) for v in change[2:] + first[2:])
    assert np.mean(change[:2]) == pytest.approx(found.drift["ends/series"][3] - found.drift["ends/series"][0])
    assert judge(Source(noisy(2)), PROTOCOL, [Ends()]).metrics == {}, "who makes no long clips is not judged on them"


def test_a_metric_that_breaks_its_contract_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mean, "score", lambda self, clips, prompts: {"all": torch.zeros(2)})
    with pytest.raises(PluginError, match="'mean' returned 2 values for 4 prompts"):
        judge(Source(noisy(2)), PROTOCOL, [Mean()])
    monkeypatch.setattr(Mean, "score", lambda self, clips, prompts: {"all": torch.zeros(4, 3)})
    with pytest.raises(PluginError, match=r"'mean' returned 'all' of shape \[4, 3\].*series are for"):
        judge(Source(noisy(2)), PROTOCOL, [Mean()])


def test_clips_are_saved_for_the_report(tmp_path: Path) -> None:
    clips = torch.rand(2, 5, 3, 4, 6)
    save_clips(tmp_path / "a-0.npz", clips)
    found = np.load(tmp_path / "a-0.npz")["clips"]
    assert found.shape == (2, 5, 4, 6, 3) and found.dtype == np.uint8
    assert abs(found / 255 - clips.permute(0, 1, 3, 4, 2).numpy()).max() <= 0.5 / 255 + 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["a-0.npz"]


# --- health of the judges ---


def test_an_adversary_on_one_reward_is_separated() -> None:
    prompts = [c for c in captions.prompts("basic/train") if "still" not in c][:3]
    found = health.hack("video", "visual_quality", prompts, 15)
    assert found["after"]["reward"] > found["before"]["reward"] + 0.3
    assert found["after"]["auditor"] < 0.5 < found["ground_truth"]["auditor"]
    assert found["ground_truth"]["passed"] == 1 > found["after"]["passed"]
    assert found["separated"] and 0 < found["interval"][0] < found["excess"] < found["interval"][1]
    idle = health.hack("video", "visual_quality", prompts, 0)
    assert idle["excess"] == 0 and not idle["separated"]


def test_the_perturbation_table_is_judged_by_the_protocols_metrics() -> None:
    from vidalign.bench.sections import HealthConfig

    found = health.examine("video", ["a whale", FALLS, STILL], [WorldAuditor(), Diversity()], HealthConfig(2, 0, 1))
    assert found is not None and list(found["perturbations"]) == list(perturbations.ROWS)
    means = {row: values["world_auditor/composite"] for row, values in found["perturbations"].items()}
    assert means["ground truth"] > 0.95 and means["uniform noise"] < 0.2
    assert list(found["falls"]) == list(perturbations.ROWS[1:])
    noise, blurred = found["falls"]["uniform noise"], found["falls"]["blur 2 px"]
    for fall, row in ((noise, "uniform noise"), (blurred, "blur 2 px")):
        assert fall["mean"] == pytest.approx(means["ground truth"] - means[row], abs=1e-6)
        assert fall["separated"] and 0 < fall["interval"][0] <= fall["mean"] <= fall["interval"][1]
    assert not health._fall(torch.tensor([0.1, -0.1, 0.05, -0.05]))["separated"]
    assert set(health.rewards("video")) == {"text_alignment", "motion_quality", "visual_quality"}
    assert health.examine("video", ["a whale"], [], HealthConfig()) is None
