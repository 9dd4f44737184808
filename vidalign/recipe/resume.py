"""A run goes on with the recipe that it began with; what may change on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vidalign.errors import Problem, UserError
from vidalign.recipe.differences import differences
from vidalign.recipe.older import current
from vidalign.recipe.source_map import read_yaml

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

FREE_ON_RESUME = (
    "trainer.steps",
    "trainer.micro_batch",
    "trainer.rollout_batch",
    "trainer.save_every",
    "trainer.keep",
    "trainer.eval_every",
    "trainer.max_skipped",
    "trainer.reward_timeout",
    "trainer.on_reward_timeout",
    "tracking",
    "trackers",
    "callbacks",
    "evaluation",
)
"""Keys that may change when a run goes on: none of them changes a step's update."""


def check_same_recipe(file: Path, recipe: Recipe) -> None:
    """A run goes on with the recipe that it began with. Raises `UserError` that names every other value."""
    problems: list[Problem] = []
    began, now = current(read_yaml(file, problems)).plain(), yaml.safe_load(recipe.to_yaml())
    if problems or not isinstance(began, dict):
        first = problems[0] if problems else Problem("it is no recipe", str(file))
        raise UserError(
            "the recipe that the run began with cannot be read",
            where=str(file),
            why=f"{first.what}: {first.why}",
            fix="write it again with `vidalign show RECIPE [KEY=VALUE]... > RUN/recipe.yaml`",
        )
    changed = [f"{k}: {was} -> {then}" for k, was, then in differences(began, now) if not k.startswith(FREE_ON_RESUME)]
    if changed:
        raise UserError(
            "the run in this folder began with another recipe",
            where=str(file),
            why="; ".join(changed),
            fix="resume with that recipe, or start anew in another --run",
        )
