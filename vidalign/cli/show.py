"""`vidalign show RECIPE [--explain]`: the recipe with parents, overrides and defaults filled in."""

from __future__ import annotations

from typing import Annotated

import typer

from vidalign.cli.options import Overrides, Plugins, RecipeArgument, report_warnings


def show(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each value means and where it was written.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Print a recipe as it would be run; the output is a recipe again."""
    from vidalign.recipe import load_recipe
    from vidalign.recipe.explain import render

    loaded = load_recipe(recipe, overrides)
    report_warnings(loaded.warnings)
    typer.echo("".join(f"# {line}".rstrip() + "\n" for line in loaded.header.splitlines()), nl=False)
    typer.echo(render(loaded, explain), nl=False)
