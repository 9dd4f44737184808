"""`vidalign plan RECIPE [--gpus N] [--gpu NAME] [--measure]`: what a step holds in memory."""

from __future__ import annotations

from typing import Annotated

import typer

from vidalign.cli.launch import Gpus, check_processes
from vidalign.cli.options import Overrides, Plugins, RecipeArgument, report_warnings
from vidalign.errors import UsageError


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Gpus = 1,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME|SIZE", help="Refuse what does not fit on it: h100, l40s, 80GB, ..."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run one step on this machine's device, and compare. Nothing is saved.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Show what a step holds on each GPU; nothing is loaded, unless it is measured."""
    from vidalign.recipe import load_recipe
    from vidalign.workflows.fits import advice, check_fits, comparison, memory_of, table
    from vidalign.workflows.plan import measure_step, plan_step

    if measure and gpus > 1:
        why = "one process measures, and divides nothing"
        raise UsageError("--measure is of one GPU", where=f"--gpus {gpus}", why=why, fix="leave one of them out")

    loaded = load_recipe(recipe, overrides)
    check_processes(loaded, gpus)
    report_warnings(loaded.warnings)
    if gpu is not None:
        memory_of(gpu)  # a mistyped name is refused at once
    planned = plan_step(loaded, gpus)
    typer.echo(table(planned))
    typer.echo(advice(loaded, planned, gpus))
    if measure:
        typer.echo(comparison(planned, *measure_step(loaded, planned)))
    if gpu is not None:
        check_fits(loaded, planned, gpu, gpus)
