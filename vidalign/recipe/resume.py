"""A run goes on with the recipe that it began with; what may change on the way."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vidalign.data.source import placed
from vidalign.errors import Problem, UsageError, UserError
from vidalign.recipe.compose import weights_spelled_out
from vidalign.recipe.differences import differences
from vidalign.recipe.load import build_sections
from vidalign.recipe.older import current
from vidalign.recipe.source_map import Node, read_yaml

if TYPE_CHECKING:
    from vidalign.data.source import Chosen, PromptSource
    from vidalign.recipe import Recipe

FREE_ON_RESUME = (
    "data.text_cache",
    "trainer.micro_batch",
    "trainer.rollout_batch",
    "trainer.score_ahead",
    "trainer.save_every",
    "trainer.keep",
    "trainer.eval_every",
    "trainer.max_skipped",
    "trainer.max_on_policy_gap",
    "trainer.reward_timeout",
    "trainer.on_reward_timeout",
    "tracking",
    "trackers",
    "callbacks",
    "evaluation",
)
"""Keys that may change when a run goes on: none of them changes a step's update."""


def check_begun(run: Path, saved: Sequence[int], resume: bool, steps: float = math.inf) -> None:
    """Raise `UsageError` where steps of a run are saved and it is not to go on: another one is not written over it. So
    too where it is saved beyond its last step, `steps`."""
    if saved and resume and saved[-1] > steps:
        why, fix = f"{run} is saved at step {saved[-1]}", "ask for more steps; --step N takes an earlier student"
        raise UsageError("the run is beyond its last step", where=f"trainer.steps={steps}", why=why, fix=fix)
    if saved and not resume:
        raise UsageError(
            f"{run} already holds a run, saved at step {saved[-1]}",
            where="--run",
            fix="add --resume to go on with it, or name another folder; see docs/troubleshooting.md",
        )


def prompts_digest(source: PromptSource, chosen: Chosen) -> str:
    """A hash of the prompts of an open source, which a recipe has chosen, in their order; '' where they cannot be read
    without cost."""
    for prompts in (source.questions(), placed(chosen)):
        digest = hashlib.sha256()
        for _, prompt in prompts:
            digest.update(json.dumps(str(getattr(prompt, "prompt", prompt))).encode())
        if digest.digest() != hashlib.sha256().digest():
            return digest.hexdigest()
    return ""


def judges_digest(recipe: Recipe) -> str:
    """A hash of what a recipe's evaluations depend on: other ones give scores that cannot be compared."""
    settings = yaml.safe_load(recipe.to_yaml())["evaluation"]
    return hashlib.sha256(json.dumps([settings, recipe.judged_prompts]).encode()).hexdigest()[:12]


def report_other_prompts(before: str, now: str) -> None:
    """Warn where a run goes on with other prompts than it began with, by their digests."""
    if before and now and before != now:
        what = "the training prompts differ from those that the run began with: further steps draw from the new ones"
        warnings.warn(f"{what}, in an order of their own", stacklevel=2)


def check_same_recipe(file: Path, recipe: Recipe) -> None:
    """A run goes on with the recipe that it began with. Raises `UserError` that names every other value."""
    problems: list[Problem] = []
    tree = weights_spelled_out(current(read_yaml(file, problems)))
    if problems or not isinstance(tree.value, dict):
        first = problems[0] if problems else Problem("it is no recipe", str(file))
        raise UserError(
            "the recipe that the run began with cannot be read",
            where=str(file),
            why=f"{first.what}: {first.why}",
            fix="write it again with `vidalign show RECIPE [KEY=VALUE]... > RUN/recipe.yaml`",
        )
    began, now = _with_defaults(tree), yaml.safe_load(recipe.to_yaml())
    free = (*FREE_ON_RESUME, *(f"rewards.{key}.{setting}" for key, setting in recipe.local_of_rewards()))
    if recipe.trainer.schedule == "constant":  # else the learning rate falls towards the last step
        free += ("trainer.steps",)
    changed = [f"{k}: {was} -> {then}" for k, was, then in differences(began, now) if not k.startswith(free)]
    if changed:
        raise UserError(
            "the run in this folder began with another recipe",
            where=str(file),
            why="; ".join(changed),
            fix="resume with that recipe, or start anew in another --run",
        )


def _with_defaults(tree: Node) -> dict[str, Any]:
    """The values that a run began with; keys that have come since have their defaults. A recipe that cannot be built
    today is taken as it was written."""
    problems: list[Problem] = []
    recipe, _ = build_sections(tree, True, problems)
    values: dict[str, Any] = tree.plain() if problems else yaml.safe_load(recipe.to_yaml())
    return values
