"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign import registry
from vidalign.errors import Problem, before_work


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    with before_work():
        for file in files or []:
            registry.load_plugin_file(file)
    return files


RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or a shipped recipe such as world/astrolabe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: key=value sets, ~key deletes."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="A Python file that registers plugins.",
        callback=_load_plugins,
        is_eager=True,
    ),
]
Step = Annotated[
    int | None,
    typer.Option("--step", metavar="N", min=0, help="The student in the checkpoint of step N, not the final one."),
]
Best = Annotated[
    bool, typer.Option("--best", help="The student in the checkpoint with the best held-out score, not the final one.")
]
Trust = Annotated[
    bool, typer.Option("--trust-checkpoint", help="Read a ZeRO checkpoint of another user: loading it runs code.")
]
Semi = Annotated[
    Path | None,
    typer.Option("--semi", metavar="RUN", help="Add the run's change to this one's student, as `vidalign merge` does."),
]
RunFolder = Annotated[Path, typer.Option("--run", metavar="RUN", help="The folder of a run.")]


def report_warnings(warnings: list[Problem]) -> None:
    """Warnings of a recipe, on standard error."""
    for problem in warnings:
        typer.secho("warning: ", fg="yellow", err=True, nl=False)
        typer.echo(str(problem), err=True)
