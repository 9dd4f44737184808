"""A plugin refuses a recipe that does not fit it; the recipe's own checks know no plugin by name."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import vidalign.recipe
from vidalign import registry
from vidalign.errors import PluginError, RecipeError, UserError
from vidalign.objectives.baselines.sft import SFT
from vidalign.recipe import load_recipe
from vidalign.recipe.draft import Draft
from vidalign.students.language_kind import Language

ROOM = Path(vidalign.recipe.__file__).parent


def refuse(kind: str) -> Any:
    def check(cls: type, draft: Draft) -> None:
        if draft.recipe.seed == 7:
            draft.refuse(f"seed 7 does not suit the {kind}", "seed", "a test", "use another")

    return classmethod(check)


class Clips:
    """Offers clips of nothing."""

    offers = ("clips",)
    check = refuse("teacher")

    @dataclass
    class Config:
        size: int = 1
        """A number."""

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: Any) -> Clips:
        return cls()


class Even:
    """A reward."""

    name = "even"
    check = refuse("reward")

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        return {"even": torch.zeros(len(prompts))}


class Mine(SFT):
    """An objective."""

    check = refuse("objective")


class Kind(Language):
    """A third kind of student."""

    check = refuse("student")


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    for kind, plugin in {"teachers": Clips, "rewards": Even, "objectives": Mine, "students": Kind}.items():
        registry.register(kind, "own")(plugin)


def told(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe("world/sft", list(overrides))
    return str(caught.value)


CHOSEN = {
    "teacher": ["teacher.name=own"],
    "reward": ["rewards.own=1.0"],
    "objective": ["objective={name: own}"],
    "student": ["student.name=own"],
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_a_plugin_refuses_what_does_not_fit(kind: str) -> None:
    message = told(*CHOSEN[kind], "seed=7")
    assert f"seed 7 does not suit the {kind} - override 2 - a test - use another" in message
    if kind != "student":
        assert load_recipe("world/sft", CHOSEN[kind]).seed != 7


def test_what_a_student_makes_decides_which_rewards_judge_it() -> None:
    assert "the reward 'text_alignment' cannot judge texts" in told("student.name=own", "rewards.text_alignment=1.0")


def test_a_check_that_fails_is_the_plugins_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clips, "check", staticmethod(lambda draft: 1 / 0))
    assert "the teacher 'own' failed" in told("teacher.name=own") and issubclass(PluginError, UserError)


def test_a_reward_says_what_the_teacher_must_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Even, "teacher_offers", "velocity", raising=False)
    assert "the own needs velocity, this one offers clips" in told("teacher.name=own", "rewards.own=1.0")


def test_no_check_of_the_recipe_names_a_plugin() -> None:
    """But for the defaults of the schema and of `Needs`, and the keys of older recipes."""
    names = {name for kind in registry.KINDS for name in registry._BUILTIN[kind]}
    for file in sorted(ROOM.glob("*.py")):
        strings = {n.value for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Constant)}
        assert file.name in ("schema.py", "needs.py", "older.py") or not strings & names, (file.name, strings & names)
