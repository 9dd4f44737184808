"""`vidalign validate RECIPE`: every mistake of a recipe at once; nothing is loaded or started."""

from __future__ import annotations

import typer

from vidalign.cli.launch import Gpus, check_processes
from vidalign.cli.options import Overrides, Plugins, RecipeArgument, report_warnings


def validate(recipe: RecipeArgument, overrides: Overrides = None, gpus: Gpus = 1, plugin: Plugins = None) -> None:
    """Check a recipe and report every mistake."""
    from vidalign.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    check_processes(loaded, gpus)
    report_warnings(loaded.warnings)
    typer.echo(f"{loaded.name} is valid (hash {loaded.hash})")
