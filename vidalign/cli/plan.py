"""`vidalign plan RECIPE [--gpus N] [--gpu NAME]`: what a step holds in memory, before anything is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from vidalign.cli.launch import Gpus, check_processes
from vidalign.cli.options import Overrides, Plugins, RecipeArgument, report_warnings


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Gpus = 1,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME|SIZE", help="Refuse what does not fit on it: h100, l40s, 80GB, ..."),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Show what a step holds on each GPU; nothing is loaded."""
    from vidalign.recipe import load_recipe
    from vidalign.workflows.fits import advice, check_fits, memory_of, table
    from vidalign.workflows.plan import plan_step

    loaded = load_recipe(recipe, overrides)
    check_processes(loaded, gpus)
    report_warnings(loaded.warnings)
    if gpu is not None:
        memory_of(gpu)  # a mistyped name is refused at once
    planned = plan_step(loaded, gpus)
    typer.echo(table(planned))
    typer.echo(advice(loaded, planned, gpus))
    if gpu is not None:
        check_fits(loaded, planned, gpu, gpus)
