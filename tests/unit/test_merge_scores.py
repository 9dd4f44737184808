"""What merges are judged by: the recipe's own rewards at home, a metric that nobody trains on elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vidalign import registry
from vidalign.errors import DataError, UserError
from vidalign.evaluation.metrics.base import Metric
from vidalign.recipe import Recipe, load_recipe
from vidalign.workflows.merge_scores import MergeScores
from vidalign.worlds.video import captions

INSIDE, OUTSIDE = (captions.prompts(split) for split in ("train", "held_out_combinations"))


class Length:
    """A reward that is no world's: the number of letters, plus the brightness."""

    name = "length"

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        return {"length": torch.tensor([float(len(p)) for p in prompts]) + clips.flatten(1).mean(1).cpu()}


class Dark(Metric):
    name = "dark"

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        return {"light": clips.flatten(1).mean(1), "composite": -clips.flatten(1).mean(1)}


@pytest.fixture(autouse=True)
def plugins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        known = registry.get
        own: dict[tuple[str, str], Any] = {("rewards", "length"): Length, ("metrics", "dark"): Dark}
        patch.setattr(registry, "get", lambda kind, name: own.get((kind, name)) or known(kind, name))
        yield


def recipe(folder: Path, **changes: Any) -> Recipe:
    content = {
        "student": {"path": "world/student"},
        "objective": {"name": "astrolabe", "group_size": 2},
        "rewards": {"length": 3.0, "visual_quality": 0.0},
        "evaluation": {"count": 5, "seeds": 2},
        **changes,
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_recipe(file)


class Student:
    """Grey clips, lighter with the seed; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompts: list[str], generators: list[torch.Generator]) -> torch.Tensor:
        self.asked += prompts
        return torch.full((len(prompts), 12, 3, 32, 32), 0.25)


def ignore(count: int) -> None:
    """Nobody watches."""


def test_rewards_of_the_recipe_at_home_and_the_auditor_elsewhere(tmp_path: Path) -> None:
    student = Student()
    counted: list[int] = []
    scores = MergeScores(recipe(tmp_path))
    inside, outside = scores(student, counted.append)
    assert sum(counted) == scores.clips == len(student.asked)
    first, second = student.asked[:10], student.asked[10:]
    assert set(first) <= set(INSIDE) and set(second) <= set(OUTSIDE) and first[:5] == first[5:]
    torch.testing.assert_close(inside, torch.tensor([len(p) + 0.25 for p in first[:5]]))
    auditor = registry.get("metrics", "world_auditor")().score(student(second[:5], []), second[:5])["composite"]
    torch.testing.assert_close(outside, auditor)


def test_prompts_and_judge_of_ones_own(tmp_path: Path) -> None:
    own, other = tmp_path / "own.txt", tmp_path / "other.txt"
    own.write_text("a dog\na cat on a mat\n")
    other.write_text("an oil painting\n")
    mine = recipe(tmp_path, data={"prompts": str(own)})
    student = Student()
    inside, outside = MergeScores(mine, str(other), "dark")(student, ignore)
    assert set(student.asked) == {"a dog", "a cat on a mat", "an oil painting"} and len(inside) == 2
    assert outside.tolist() == [-0.25]
    assert MergeScores(mine, str(other), "dark/light")(student, ignore)[1].tolist() == [0.25]
    with pytest.raises(UserError, match="there are no out-of-domain prompts"):
        MergeScores(mine)
    with pytest.raises(UserError, match="there is no judge of out-of-domain prompts - --judge - the source of"):
        MergeScores(mine, str(other))
    with pytest.raises(DataError, match="no out-of-domain prompt can be judged"):
        MergeScores(mine, str(other), "world_auditor")(student, ignore)
    with pytest.raises(UserError, match="has no value 'lite'"):
        MergeScores(mine, str(other), "dark/lite")(student, ignore)
    with pytest.raises(UserError, match="judges no single clips"):
        MergeScores(mine, str(other), "diversity")


def test_a_part_of_the_world_is_judged_beyond_that_part(tmp_path: Path) -> None:
    scores = MergeScores(recipe(tmp_path, data={"prompts": "world:basic/train"}))
    assert set(scores.outside[0]) <= set(captions.prompts("basic/held_out_combinations"))


def test_a_reward_that_learns_judges_no_merge(tmp_path: Path) -> None:
    learned = {"rewards": {"discriminator": 1.0}, "discriminator": {"name": "spatiotemporal"}}
    copo = {"name": "ar_copo", "group_size": 4}
    with pytest.raises(UserError, match="cannot be compared by the reward 'discriminator'"):
        MergeScores(recipe(tmp_path, objective=copo, teacher={"name": "world"}, **learned))
