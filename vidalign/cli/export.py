"""`vidalign export`: the student of a run as one file with provenance and scores, ready to be shipped or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vidalign.cli.options import Best, RunFolder, Step, Trust
from vidalign.errors import UsageError
from vidalign.owner import LOCK, owned


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to write.")],
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="float16 halves the file; computing stays in float32.")
    ] = "float32",
    step: Step = None,
    best: Best = False,
    trust_checkpoint: Trust = False,
) -> None:
    """Write the student of a run to one file."""
    if out.suffix != ".safetensors":
        raise UsageError(
            f"a student cannot be written as {out.name!r}",
            where="--out",
            why="its weights are a safetensors file",
            fix="end the file name in .safetensors",
        )
    from vidalign.workflows.export import export_run
    from vidalign.workflows.opened import check_finished
    from vidalign.workflows.saved import Saved

    saved = Saved(step, best, trust_checkpoint)
    check_finished(run, saved)
    with owned(out.parent, f".{out.name}{LOCK}"):
        typer.echo(str(export_run(run, out, dtype, saved)))
