"""`vidalign prepare RECIPE`: encode the prompts of a run once, so that no text encoder is needed while it trains."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from vidalign.cli.launch import Gpus, Nodes, Rendezvous, relaunch
from vidalign.cli.options import Overrides, Plugins, RecipeArgument, report_warnings


def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Gpus = 1,
    nodes: Nodes = 1,
    rendezvous: Rendezvous = None,
    plugin: Plugins = None,
) -> None:
    """Encode all prompts of a run into the cache on disk."""
    from vidalign.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    relaunch(gpus, nodes, rendezvous, Path(loaded.data.text_cache or "prepare"))
    if os.environ.get("RANK", "0") == "0":
        report_warnings(loaded.warnings)
    from vidalign.engine import distributed
    from vidalign.workflows.prepare import prepare as encode  # heavy, and not needed to refuse a recipe

    made = encode(loaded)
    if distributed.rank() == 0 and made.folder is None:
        typer.echo(f"a {loaded.student.name} student reads its prompts itself: there is nothing to encode")
    elif distributed.rank() == 0:
        typer.echo(f"{made.prompts} prompts, {made.encoded} of them encoded now, in {made.folder}")
