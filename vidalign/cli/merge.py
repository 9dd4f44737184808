"""`vidalign merge`: the adapters of a semi-on-policy and an on-policy run in one student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Plugins
from vidalign.errors import UsageError
from vidalign.owner import owned


def merge(
    semi: Annotated[Path, typer.Option("--semi", metavar="RUN", help="Run trained from a buffer.")],
    on_policy: Annotated[Path, typer.Option("--on-policy", metavar="RUN", help="Run trained on its own rollouts.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for the merged student.")],
    scale: Annotated[
        list[float] | None,
        typer.Option(
            "--scale", min=0.0, help="s; one is taken as it is, of several the rule chooses. Default: 1, 0.8, ..., 0."
        ),
    ] = None,
    out_of_domain: Annotated[
        str,
        typer.Option(metavar="PROMPTS", help="Prompts of another kind; of the world: its held-out combinations."),
    ] = "",
    judge: Annotated[
        str,
        typer.Option(
            metavar="METRIC",
            help="What judges them, NAME or NAME/VALUE: clip_score for real videos. Default: the "
            "first that the source of the training prompts offers, such as the world's auditor.",
        ),
    ] = "",
    plugin: Plugins = None,
) -> None:
    """Merge two adapters: W0 + dW_semi + s dW_on."""
    from vidalign.workflows.merge import SCALES, merge_runs
    from vidalign.workflows.opened import student_file

    if student_file(out).exists():
        raise UsageError(f"{out} already holds a student", where="--out", fix="name another folder")

    with owned(out):
        merge_runs(semi, on_policy, out, scale or SCALES, out_of_domain=out_of_domain, judge=judge)
