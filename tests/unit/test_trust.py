"""What rewards see and do to each other: statistics against brute force, and `vidalign rewards check` end to end."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from vidalign.build import build_rewards, build_student, prompt_features
from vidalign.cli import app
from vidalign.errors import UserError
from vidalign.evaluation.corruptions import CORRUPTIONS, drifting, half_speed, other_prompts, shuffled
from vidalign.evaluation.evaluator import Evaluator
from vidalign.evaluation.metrics.base import Metric
from vidalign.evaluation.trust import best_of, correlations, rank_correlation, seen, sign_test
from vidalign.recipe import load_recipe
from vidalign.registry import register, unregister
from vidalign.workflows.rewards_check import Trust, check_rewards
from vidalign.worlds.video.rewards import VisualQuality


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (0, 6), (7, 3), (4, 4)])
def test_the_sign_test_counts_all_coins(worse: int, better: int) -> None:
    """By hand: all outcomes of so many fair coins that are at least as uneven."""
    count = worse + better
    uneven = [sum(coins) for coins in itertools.product((0, 1), repeat=count)]
    as_uneven = sum(abs(2 * heads - count) >= abs(worse - better) for heads in uneven) / 2**count
    assert sign_test(worse, better) == pytest.approx(as_uneven)


def test_verdicts() -> None:
    clean = torch.arange(12.0).view(3, 4)
    assert seen(clean, clean - 1).verdict == "sees it" and seen(clean, clean - 1).lower == 1
    assert seen(clean, clean - 1).change == pytest.approx(-1 / float(clean.std(unbiased=False)))
    assert seen(clean, clean + 1).verdict == "likes it"
    assert seen(clean, clean) == seen(clean, clean.clone()) and seen(clean, clean).verdict == "blind"
    assert seen(clean, clean).lower == 0.5
    mixed = clean + torch.tensor([1.0, -1.0]).repeat(6).view(3, 4)
    assert seen(clean, mixed).verdict == "blind"
    lost = clean.clone()
    lost[:] = math.nan
    assert seen(clean, lost).verdict == "not judged"
    lost[0] = clean[0] - 1
    assert seen(clean, lost).lower == 1 and seen(clean, lost).verdict == "blind", "four clips prove nothing"


def by_pairs(x: list[float], y: list[float]) -> float:
    """Spearman's correlation from ranks that are counted pair by pair."""

    def ranks(values: list[float]) -> list[float]:
        return [sum((o < v) + (o == v) / 2 for o in values) for v in values]

    a, b = ranks(x), ranks(y)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
    return top / math.sqrt(sum((p - ma) ** 2 for p in a) * sum((q - mb) ** 2 for q in b))


def test_rank_correlation_inside_a_prompt() -> None:
    a = torch.tensor([[1.0, 2, 3, 4], [10, 30, 20, 20], [5, 5, 5, 5]])
    b = torch.tensor([[2.0, 1, 4, 3], [1, 2, 2, 0], [1, 2, 3, 4]])
    expected = (by_pairs([1, 2, 3, 4], [2, 1, 4, 3]) + by_pairs([10, 30, 20, 20], [1, 2, 2, 0])) / 2
    assert rank_correlation(a, b) == pytest.approx(expected), "a prompt whose scores are equal ranks nothing"
    lost = torch.cat([b, torch.full((3, 1), math.nan)], 1)
    wide = torch.cat([a, torch.full((3, 1), 99.0)], 1)
    assert rank_correlation(wide, lost) == pytest.approx(expected), "what one did not judge is left out"
    assert math.isnan(rank_correlation(a[2:], b[2:]))
    assert correlations({"a": a, "b": b, "c": -a}) == pytest.approx(
        {("a", "b"): expected, ("a", "c"): -1.0, ("b", "c"): -expected}
    )


def test_best_of_n_by_hand() -> None:
    a = torch.tensor([[1.0, 2, 3], [6, 5, 4]])
    b = torch.tensor([[9.0, 0, 3], [1, 1, 4]])
    found = best_of({"a": a, "b": b})
    sd = {
        name: math.sqrt(sum(float(row.var(unbiased=False)) for row in scores) / 2)
        for name, scores in (("a", a), ("b", b))
    }
    assert found["a", "a"] == pytest.approx(((3 - 2) + (6 - 5)) / 2 / sd["a"])
    assert found["a", "b"] == pytest.approx(((3 - 4) + (1 - 2)) / 2 / sd["b"])
    assert found["b", "a"] == pytest.approx(((1 - 2) + (4 - 5)) / 2 / sd["a"])
    a[0, 2] = math.nan
    assert best_of({"a": a, "b": b})["a", "b"] == pytest.approx(
        ((0 - 4.5) + (1 - 2)) / 2 / math.sqrt((4.5**2 + float(b[1].var(unbiased=False))) / 2)
    )


def test_corruptions_are_what_they_are_called() -> None:
    clips = torch.rand(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, corrupt in CORRUPTIONS.items():
        found = corrupt(clips.clone())
        assert found.shape == clips.shape and found.min() >= 0 and found.max() <= 1, name
        assert (found != clips).flatten(1).any(1).all() and torch.equal(found, corrupt(clips.clone())), name
    order = [int((shuffled(clips)[0, n] == clips[0]).flatten(1).all(1).nonzero()) for n in range(8)]
    assert sorted(order) == list(range(8)) != order
    assert torch.equal(half_speed(clips)[:, [0, 1, 6, 7]], clips[:, [0, 0, 3, 3]])
    assert torch.equal(drifting(clips)[:, :6], clips[:, :6]) and (drifting(clips)[:, 7] != clips[:, 7]).any()
    assert other_prompts(["a", "a", "b", "c"]) == ["b", "b", "c", "a"]
    with pytest.raises(UserError, match="two prompts that differ"):
        other_prompts(["a", "a"])


class Flicker:
    """Likes what changes from frame to frame: noise and shuffling raise it, whatever the prompt."""

    name, judges = "flicker", "clips"

    def score(self, clips: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        return {"flicker": (clips[:, 1:] - clips[:, :-1]).abs().mean((1, 2, 3, 4))}


def test_the_command_finds_a_reward_that_can_be_hacked(tmp_path: Path) -> None:
    register("rewards", "flicker")(Flicker)
    try:
        recipe = load_recipe("world/astrolabe", ["~rewards", "rewards={flicker: 1, visual_quality: 1}"])
        trust = check_rewards(recipe, 3, 4, out=tmp_path / "check.json", console=Console(quiet=True))
    finally:
        unregister("rewards", "flicker")
    verdicts = {name: rewards["flicker"].verdict for name, rewards in trust.seen.items()}
    assert verdicts["noise"] == verdicts["shuffle"] == "likes it" and verdicts["freeze"] == "sees it"
    assert verdicts["wrong prompt"] == "blind"
    assert "flicker likes noise: training on it alone will find that" in trust.remarks
    assert "no reward sees wrong prompt: it can come in unpunished" in trust.remarks
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["corruptions"]["noise"]["flicker"]["verdict"] == "likes it" and written["header"]
    assert written["prompts"] == 3 and len(written["best_of"]) == 4
    assert {one["by"] for one in written["held_out"]} == {"flicker", "visual_quality"}
    gain, alike = trust.held_out["visual_quality", "world_auditor/composite"]
    assert gain > 0.2 and alike > 0, "the auditor agrees that broken clips are bad"


class Copied(Metric):
    """A held-out metric that says what visual_quality says, negated."""

    name = "copied"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"negated": -VisualQuality().score(clips, prompts)["visual_quality"]}


def test_held_out_metrics_are_judged_by_what_rewards_choose(tmp_path: Path) -> None:
    """A metric that is a reward negated loses what the reward gains; one that is a reward of the recipe is left out."""
    register("metrics", "copied")(Copied)
    try:
        metrics = "evaluation.metrics={copied: {}, flow_motion: {}}"
        recipe = load_recipe("world/astrolabe", ["~rewards", "rewards={motion: 1, visual_quality: 1}", metrics])
        trust = check_rewards(recipe, 3, 4, console=Console(quiet=True))
    finally:
        unregister("metrics", "copied")
    assert set(trust.held_out) == {("motion", "copied/negated"), ("visual_quality", "copied/negated")}
    gain, alike = trust.held_out["visual_quality", "copied/negated"]
    assert gain == pytest.approx(-trust.best_of["visual_quality", "visual_quality"]) and alike == pytest.approx(-1)


def test_a_set_of_rewards_that_rank_alike_is_named() -> None:
    alike = Trust({}, {("a", "b"): 0.7, ("a", "c"): 0.6, ("b", "c"): math.nan}, {}, 2, 4, [])
    assert alike.remarks == [
        "all rewards rank alike (smallest correlation 0.60, a and c): one of them held out cannot show hacking"
    ]
    assert not Trust({}, {("a", "b"): 0.7, ("a", "c"): 0.4}, {}, 2, 4, []).remarks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["world/sft", "rewards={}"], "there is no reward to check"),
        (["tokens/opd", "rewards={exact_match: 1}"], "there is no reward to check"),
        (["world/astrolab"], "nearest"),
    ],
)
def test_what_cannot_be_checked(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["rewards", "check", *arguments])
    assert result.exit_code and isinstance(result.exception, UserError)
    assert message in str(result.exception) or "astrolabe" in str(result.exception)


@pytest.mark.parametrize(
    ("rewards", "metrics", "headline"),
    [
        ({"motion": 1.0}, {"flow_motion": {}, "world_auditor": {}}, "world_auditor"),
        ({"motion": 1.0}, {"flow_motion": {}}, "trained rewards"),
        ({"motion": 0.0, "visual_quality": 1.0}, {"flow_motion": {}}, "flow_motion"),
        ({"mine": {"name": "motion", "weight": 1.0}}, {"flow_motion": {}, "world_auditor": {}}, "world_auditor"),
    ],
)
def test_a_trained_reward_is_not_held_out(
    rewards: dict[str, object], metrics: dict[str, object], headline: str
) -> None:
    """By whatever name it is a metric: the monitor of hacking reads what is not trained on, and validate warns."""
    sections = [f"rewards={json.dumps(rewards)}", f"evaluation.metrics={json.dumps(metrics)}", "evaluation.count=2"]
    recipe = load_recipe("world/astrolabe", ["~rewards", *sections, "objective.kl.mode=uniform"])
    warned = [problem for problem in recipe.warnings if "nothing held out" in problem.what]
    assert bool(warned) == (headline == "trained rewards")
    student = build_student(recipe)
    evaluator = Evaluator.from_recipe(recipe, build_rewards(recipe, student.spec, prompt_features(recipe)))
    found = evaluator(lambda prompts, generators: torch.rand(len(prompts), 6, 3, 32, 32), 2)
    assert found.headline is not None and found.headline[0] == headline
