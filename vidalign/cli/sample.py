"""`vidalign sample`: clips of a trained (or shipped) student as GIF or MP4."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Plugins, RunFolder


def sample(
    run: RunFolder,
    prompt: Annotated[list[str], typer.Option("--prompt", help="What to show; may be given several times.")],
    out: Annotated[
        Path, typer.Option("--out", help="File to write; .gif, or .mp4 where an encoder is there.")
    ],
    frames: Annotated[int | None, typer.Option(help="Length in frames; default as in training.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives another clip.")] = 0,
    plugin: Plugins = None,
) -> None:
    """Generate clips with the student of a run."""
    from vidalign.runs import sample_run

    for path in sample_run(run, prompt, out, frames=frames, seed=seed):
        typer.echo(str(path))
