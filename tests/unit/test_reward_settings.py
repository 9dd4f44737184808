"""Rewards with settings: a weight alone stays short, layers add to each other, the plugin's own Config decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from vidalign import registry
from vidalign.build import build_rewards
from vidalign.errors import PluginError, RecipeError
from vidalign.recipe import load_recipe
from vidalign.recipe.explain import render
from vidalign.recipe.load import Recipe


class Scaled:
    """A constant."""

    name = "scaled"

    @dataclass
    class Config:
        path: str
        """Where it is read from."""
        factor: float = 1.0
        """What it returns."""

        def __post_init__(self) -> None:
            if self.factor < 0:
                raise ValueError("factor must be at least 0")

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        return {"scaled": torch.full((len(prompts),), self.config.factor)}


class Slow:
    """Without settings, and late."""

    name = "slow"

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        torch.randn(600, 600).matrix_power(400)
        return {"slow": torch.zeros(len(prompts))}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    registry.register("rewards", "scaled")(Scaled)
    registry.register("rewards", "slow")(Slow)


def load(*overrides: str) -> Recipe:
    return load_recipe("world/astrolabe", ["~rewards", *overrides])


def told(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(*overrides)
    return str(caught.value)


def test_settings_reach_the_reward() -> None:
    recipe = load("rewards.scaled={weight: 2.0, path: a, factor: 0.25}", "rewards.slow=0.5")
    rewards = build_rewards(recipe, None, None)
    assert rewards is not None and rewards.weights == {"scaled": 2.0, "slow": 0.5} == recipe.reward_weights
    assert rewards.rewards["scaled"].config == Scaled.Config("a", 0.25)  # type: ignore[attr-defined]
    assert rewards.part({"scaled": 1.0}).score(torch.zeros(2, 1, 3, 2, 2), ["a", "b"])["scaled"].tolist() == [0.25] * 2


def test_an_override_of_the_weight_keeps_the_settings_and_the_other_way_round() -> None:
    first = ["rewards.scaled={weight: 2.0, path: a, factor: 0.25}"]
    other = load(*first, "rewards.scaled.factor=3").rewards["scaled"]
    assert (other.weight, other.config) == (2.0, Scaled.Config("a", 3.0))
    short = load_recipe("world/astrolabe", ["rewards.text_alignment=0.5"]).rewards
    assert {name: one.weight for name, one in short.items()} == {
        "text_alignment": 0.5,
        "motion_quality": 1.0,
        "visual_quality": 1.0,
    }


def test_the_printed_recipe_is_short_where_it_can_be_and_reads_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = load("rewards.scaled={path: a}", "rewards.slow={weight: 0.5}", "rewards.visual_quality={timeout: 2}")
    assert recipe.plain()["rewards"] == {
        "scaled": {"name": "scaled", "weight": 1.0, "timeout": None, "path": "a", "factor": 1.0},
        "slow": 0.5,
        "visual_quality": {"name": "visual_quality", "weight": 1.0, "timeout": 2.0},
    }
    file = tmp_path_factory.mktemp("again") / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(file).plain() == recipe.plain()


def test_mistakes_name_the_key() -> None:
    assert "unknown key 'rewards.scaled.pat' - override 2 - did you mean 'path'?" in told("rewards.scaled.pat=a")
    assert "rewards.scaled.path is missing" in told("rewards.scaled=1")
    assert "rewards.scaled.factor must be at least 0" in told("rewards.scaled={path: a, factor: -1}")
    assert "unknown key 'rewards.slow.device' - override 2 - it takes no settings" in told("rewards.slow.device=cpu")
    assert "rewards.slow.weight must be float, not 'much'" in told("rewards.slow=much")
    assert "rewards.slow.timeout must be at least 0" in told("rewards.slow.timeout=-1")


def test_an_objective_that_trains_on_rewards_needs_one_with_a_weight() -> None:
    for weights in ("{slow: 0}", "{slow: 0, text_alignment: 0.0}"):
        assert "no reward has a weight - " in told(f"rewards={weights}")
    assert load("rewards={slow: 0, text_alignment: -1}").reward_weights == {"slow": 0, "text_alignment": -1}


def test_the_short_form_of_every_reward_has_a_hash() -> None:
    """Seen by running: settings that no result depends on were looked for in the number of the short form."""

    class Local(Slow):
        local_settings = ("folder",)

        @dataclass
        class Config:
            folder: str = ""

    registry.register("rewards", "local")(Local)
    long, short = load("rewards.local={folder: there}"), load("rewards.local=1.0")
    assert short.plain()["rewards"] == {"local": 1.0} and len(short.hash) == len(long.hash) == 12
    assert load("rewards.local={folder: here}").hash == long.hash


def test_settings_have_names_of_their_own() -> None:
    """Seen by running: `timeout` of the entry was read, and the plugin's default was written into the run's recipe."""

    class Same(Slow):
        @dataclass
        class Config:
            goal: float = 0.0
            timeout: float = 7.0

    registry.register("rewards", "same")(Same)
    assert "have the names of keys of the section: timeout" in told("rewards.same={goal: 1.0}")


def test_settings_that_yaml_does_not_know_read_back(tmp_path: Path) -> None:
    class Odd(Slow):
        @dataclass
        class Config:
            folder: Path = Path("models")
            derived: float = field(init=False, default=1.0)

    registry.register("rewards", "odd")(Odd)
    recipe = load("rewards.odd={folder: abc}")
    file = tmp_path / "again.yaml"
    for text in (recipe.to_yaml(), render(recipe)):
        file.write_text(text, encoding="utf-8")
        again = load_recipe(file)
        assert again.rewards["odd"].config == Odd.Config(Path("abc")) and again.hash == recipe.hash


def test_a_reward_has_a_limit_of_its_own() -> None:
    """Over that of the trainer; 0 waits for ever."""
    clips = torch.zeros(1, 1, 3, 2, 2)
    patient = build_rewards(load("rewards.slow={timeout: 0}", "trainer.reward_timeout=0.001"), None, None)
    assert patient is not None and patient.score(clips, ["a"])["slow"].tolist() == [0.0]
    hasty = build_rewards(load("rewards.slow={timeout: 0.001}"), None, None)
    assert hasty is not None
    with pytest.raises(PluginError, match=r"'slow' takes longer than 0\.001 s"):
        hasty.score(clips, ["a"])


def test_a_key_of_ones_own_names_the_plugin_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Scores, weights and errors bear the key; two keys may name one plugin."""
    two = ["rewards.fine={name: scaled, path: a, factor: 0.25}", "rewards.coarse={name: scaled, path: b, weight: 3}"]
    recipe = load(*two)
    rewards = build_rewards(recipe, None, None)
    assert rewards is not None and rewards.weights == {"fine": 1.0, "coarse": 3.0}
    scores = rewards.score(torch.zeros(2, 1, 3, 2, 2), ["a", "b"])
    assert {name: values.tolist() for name, values in scores.items()} == {"fine": [0.25] * 2, "coarse": [1.0] * 2}
    assert rewards.total(scores).tolist() == [(0.25 + 3.0) / 4] * 2
    assert rewards.part({"coarse": 1.0}).score(torch.zeros(1, 1, 3, 2, 2), ["a"])["coarse"].tolist() == [1.0]
    file = tmp_path_factory.mktemp("named") / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(file).plain() == recipe.plain()
    assert load("rewards.late={name: slow}").plain()["rewards"]["late"]["name"] == "slow", (
        "the key alone says not which"
    )
    late = build_rewards(load("rewards.late={name: slow, timeout: 0.001}", "trainer.on_reward_timeout=nan"), None, None)
    assert late is not None
    with pytest.warns(UserWarning, match="the reward 'late' takes longer"):
        assert late.score(torch.zeros(1, 1, 3, 2, 2), ["a"])["late"].isnan().all()


def test_a_reward_with_another_name_is_replaced_as_a_whole() -> None:
    first = "rewards.judge={name: scaled, path: a, factor: 0.25, weight: 2}"
    assert load(first, "rewards.judge.factor=3").rewards["judge"].config == Scaled.Config("a", 3.0)
    base = ["rewards.text_alignment.name=scaled", "rewards.text_alignment.path=b"]
    assert load_recipe("world/astrolabe", base).rewards["text_alignment"].config == Scaled.Config("b", 1.0)


def test_mistakes_of_a_named_reward_bear_its_key() -> None:
    assert "unknown key 'rewards.judge.pat' - override 2 - did you mean 'path'?" in told(
        "rewards.judge={name: scaled, pat: a}"
    )
    assert "'scalde' is not among the rewards" in told("rewards.judge={name: scalde}")
    assert "'discriminator' has another key, 'judge'" in told("rewards.judge={name: discriminator}")
