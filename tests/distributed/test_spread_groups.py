"""A group of candidates that two processes share gives what one process gives, or is refused before any work."""

from __future__ import annotations

import pytest

from vidalign import registry
from vidalign.errors import UserError
from vidalign.recipe import load_recipe
from vidalign.recipe.sharing import processes_of_a_group
from vidalign.testing import check_objective

SPREAD = [name for name in registry.names("objectives") if registry.get("objectives", name).spreads]
ONE = ["trainer.prompts_per_step=1", "objective.group_size=4"]


@pytest.mark.parametrize("name", SPREAD)
def test_two_processes_share_the_group_of_one_prompt(name: str) -> None:
    """Students, losses and metrics agree with those of one process that has the whole group."""
    check_objective(name, ONE, promises=["ranks"])


def test_selective_penalties_and_shared_noise_spread_too() -> None:
    more = ["objective.loss_noise=group", "objective.kl={mode: selective, weight: 0.1}"]
    check_objective(
        "astrolabe", [*ONE, *more, "rewards={text_alignment: 1.0, visual_quality: 1.0}"], promises=["ranks"]
    )


def shared(recipe: str, count: int, *overrides: str) -> int:
    return processes_of_a_group(load_recipe(recipe, list(overrides)), count)


def test_how_many_processes_share_a_group() -> None:
    assert [shared("world/astrolabe", count) for count in (1, 2, 8)] == [1, 1, 1]  # 8 prompts, groups of 6
    assert [shared("world/astrolabe", count) for count in (16, 24, 48)] == [2, 3, 6]
    for recipe, count, words in (
        ("world/astrolabe", 32, "4 processes would share each group of 6 candidates"),
        ("world/astrolabe", 12, "8 prompts a step cannot be shared out to 12 processes"),
        ("world/ar_copo", 16, "its objective takes whole groups, and 2 processes would share each"),
        ("world/mix_astrolabe_sft", 64, "its objective takes whole groups"),
    ):
        with pytest.raises(UserError, match=words):
            shared(recipe, count)


def test_the_prompts_of_a_warm_up_are_shared_out_equally() -> None:
    """Seen on paper: of 32 prompts 24 processes have 1 or 2, and those of 64 without any would wait for the others."""
    even = "discriminator.warm_up.prompts=48"
    assert shared("world/afd", 24, "trainer.prompts_per_step=24", even) == 1
    with pytest.raises(UserError, match="32 prompts of the warm-up cannot be shared out to 24 processes"):
        shared("world/afd", 24, "trainer.prompts_per_step=24")
    assert shared("world/afd", 24, "trainer.prompts_per_step=24", "discriminator.warm_up.max_steps=0") == 1
