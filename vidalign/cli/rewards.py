"""`vidalign rewards check`: whether the rewards of a recipe can be trusted, before GPU days are spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Overrides, Plugins, RecipeArgument, report_warnings

rewards = typer.Typer(no_args_is_help=True, help="What rewards see, and what they do to each other.")


@rewards.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of the recipe's evaluation, the first ones.")] = 8,
    candidates: Annotated[int, typer.Option(min=3, help="Clips of each prompt.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="All numbers as JSON.")] = None,
    plugin: Plugins = None,
) -> None:
    """Score clips of the recipe's student and their corruptions by every reward of the recipe."""
    from vidalign.provenance import refuse_unclean
    from vidalign.recipe import load_recipe

    if out is not None:
        refuse_unclean(out)
    loaded = load_recipe(recipe, overrides)
    report_warnings(loaded.warnings)
    from vidalign.workflows.rewards_check import check_rewards  # heavy, and not needed to refuse a recipe

    check_rewards(loaded, prompts, candidates, out=out)
