"""`vidalign new FILE --from RECIPE` and `vidalign cp RECIPE FILE`: a recipe of one's own from a shipped one.

`new` writes every value below its explanation; `cp` writes only what the recipe and its parents set.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidalign.cli.options import Overrides, Plugins, RecipeArgument

if TYPE_CHECKING:
    from vidalign.errors import Problem

NewFile = Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write; it must not be there yet.")]


def new(
    file: NewFile,
    overrides: Overrides = None,
    source: Annotated[
        str, typer.Option("--from", metavar="RECIPE", help="The recipe to start from, `vidalign list recipes`.")
    ] = "world/astrolabe",
    plugin: Plugins = None,
) -> None:
    """Write a recipe to start from: every value below what it means. `cp` writes the short form."""
    from vidalign.recipe.copies import commented
    from vidalign.workflows.copy_recipe import write_recipe

    _say(file, f"every value of {source}, explained", write_recipe(source, file, commented, overrides))


def cp(recipe: RecipeArgument, file: NewFile, plugin: Plugins = None) -> None:
    """Copy a recipe: what it and its parents set, in one file that needs no `base:`. `new` explains every value."""
    from vidalign.recipe.copies import merged
    from vidalign.workflows.copy_recipe import write_recipe

    _say(file, f"what {recipe} and its parents set", write_recipe(recipe, file, merged))


def _say(file: Path, what: str, problems: list[Problem]) -> None:
    typer.echo(f"{file}: {what}")
    if problems:
        typer.echo("before it trains:")
        for problem in problems:
            typer.echo(f"  {problem}")
    typer.echo(f"next: vidalign {'validate' if problems else 'train'} {shlex.quote(str(file))}")
