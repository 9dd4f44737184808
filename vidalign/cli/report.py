"""`vidalign report`: the page of a run, or of several side by side, made anew without judging again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The page; default RUN/report.html, of several runs report.html."),
    ] = None,
) -> None:
    """Write the page of a run, or of several side by side, from their files."""
    from vidalign.workflows.report import report_runs

    for path in report_runs(runs, out):
        typer.echo(f"report: {path}")
