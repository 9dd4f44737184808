"""`vidalign collect RECIPE --out BUFFER`: groups of candidates for semi-on-policy training, rolled out once."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Overrides, Plugins, RecipeArgument, report_warnings
from vidalign.errors import UsageError
from vidalign.owner import owned


def collect(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option("--out", metavar="BUFFER", help="Folder to fill; gaps are filled again.")],
    overrides: Overrides = None,
    groups: Annotated[int, typer.Option(min=1, help="Groups to collect, rounded up to whole steps.")] = 100,
    plugin: Plugins = None,
) -> None:
    """Collect a buffer of groups from the student that a recipe begins with."""
    from vidalign.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    report_warnings(loaded.warnings)
    if loaded.objective.name != "ar_copo":
        raise UsageError(
            f"the objective {loaded.objective.name!r} does not train from a buffer",
            where="objective.name",
            why="groups that fork at a pivot chunk are ar_copo's",
            fix="use objective.name=ar_copo",
        )
    from vidalign.engine import distributed
    from vidalign.workflows.collect import collect_buffer  # heavy, and not needed to refuse a recipe

    with owned(out):
        buffer = collect_buffer(loaded, out, groups)
    if distributed.rank() == 0:
        counts = sorted(Counter(buffer.pivots().values()).items())
        forks = ", ".join(f"{count} at chunk {pivot}" for pivot, count in counts)
        typer.echo(f"{out}: {buffer.header.groups} groups of student {buffer.header.student}, forking {forks}")
        plugins = [word for file in plugin or () for word in ("--plugin", str(file))]
        words = ["vidalign", "train", recipe, *(overrides or ()), f"objective.buffer={out}", *plugins]
        typer.echo(f"train from it with `{shlex.join(words)}`")
