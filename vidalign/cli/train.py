"""`vidalign train RECIPE`: check the recipe, train, evaluate before and after, write the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Overrides, Plugins, RecipeArgument, tell_warnings


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Folder of the run; default runs/NAME-TIME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in RUN.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Train by a recipe."""
    from vidalign.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    tell_warnings(loaded.warnings)
    from vidalign.engine import distributed  # heavy, and not needed to refuse a recipe
    from vidalign.runs import evaluate_run
    from vidalign.trainer import Trainer

    folder = Trainer(loaded, run_dir=run, resume=resume).fit()
    if distributed.rank() == 0:
        evaluate_run(folder)
