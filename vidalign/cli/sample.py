"""`vidalign sample`: clips of a trained student as GIF or MP4, answers of a language student as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Best, Plugins, RunFolder, Step, Trust
from vidalign.errors import UsageError


def sample(
    run: RunFolder,
    prompt: Annotated[list[str], typer.Option("--prompt", help="What to show; may be given several times.")],
    out: Annotated[
        Path, typer.Option("--out", help="File to write: .gif, .mp4 where an encoder is there, .txt for answers.")
    ],
    frames: Annotated[int | None, typer.Option(min=1, help="Length in frames; default as in training.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another clip.")] = 0,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Picture that a vision-language student sees.")
    ] = None,
    step: Step = None,
    best: Best = False,
    trust_checkpoint: Trust = False,
    plugin: Plugins = None,
) -> None:
    """Generate clips, or answers of a language student, with the student of a run."""
    if not all(text.strip() for text in prompt):
        raise UsageError("a prompt is empty", where="--prompt", fix="say what to show")
    from vidalign.workflows.sample import sample_run
    from vidalign.workflows.saved import Saved

    saved = Saved(step, best, trust_checkpoint)
    for path in sample_run(run, prompt, out, frames=frames, seed=seed, images=image or [], saved=saved):
        typer.echo(str(path))
