"""`vidalign doctor`: what this machine has and what cannot run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.errors import UserError


def doctor(
    runs: Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Folder below which runs are written.")] = Path(
        "runs"
    ),
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1.0, help="Longest time for two processes to meet.")
    ] = 120.0,
) -> None:
    """Show versions, devices, disks, extras and a ping of two processes: a block to paste into a bug report."""
    from vidalign.workflows.doctor import diagnose

    found = diagnose(runs, timeout)
    typer.echo(found.text())
    if found.broken:
        count = f"{len(found.broken)} problem{'s' * (len(found.broken) > 1)}"
        raise UserError(f"{count} would break a run", where="BROKEN above", fix="each line says how to repair it")
