"""`vidalign bench export-videos | import-scores`: videos for the official scorer of a suite, and its results back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign.cli.options import Plugins
from vidalign.errors import Interrupted, before_work
from vidalign.owner import owned

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="vbench, vbench_long, videophy2 or phygenbench.", show_default=False)
]


def export_videos(
    suite: SuiteName,
    prompts: Annotated[Path, typer.Option("--prompts", metavar="FILE", help="The suite's own prompt file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where videos and manifest go.")],
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="The student of this run.")] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="RECIPE", help="The student that a recipe starts from.")
    ] = "",
    seeds: Annotated[int | None, typer.Option(help="Videos of a prompt; default as the suite says.")] = None,
    rewritten: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="What the student reads instead of the prompts: a text file with a line for each (vbench*), "
            "or a column of the prompt file such as upsampled_caption (videophy2, phygenbench).",
        ),
    ] = "",
    frames: Annotated[int | None, typer.Option(help="Latent frames; default as in the evaluation.")] = None,
    fps: Annotated[float, typer.Option(help="Frame rate that the student was trained for.")] = 8,
    batch: Annotated[int, typer.Option(help="Videos generated at once.")] = 8,
    plugin: Plugins = None,
) -> None:
    """Write videos of a public suite's prompts for its official scorer; started again, it goes on."""
    if (run is None) == (not recipe):
        raise typer.BadParameter("give one of --run and --recipe", param_hint="--run")
    from rich.progress import Progress

    from vidalign.bench.suites import ExportConfig, open_suite
    from vidalign.bench.suites import export_videos as export
    from vidalign.recipe import load_recipe
    from vidalign.workflows.opened import open_run
    from vidalign.workflows.start import started_student

    with before_work():
        chosen = open_suite(suite)
        config = ExportConfig(seeds, rewritten, frames, fps, batch)
        chosen.read(prompts, rewritten)
    if run is not None:
        opened = open_run(run)
        source, student = opened.recipe, opened.student
    else:
        source = load_recipe(recipe)
        student = started_student(source)
    try:
        with owned(out), Progress(transient=True) as progress:
            task = progress.add_task("videos", total=None)
            export(
                chosen,
                prompts,
                out,
                source,
                student,
                config,
                report=lambda done, total: progress.update(task, completed=done, total=total),
                run=run,
            )
    except KeyboardInterrupt as error:
        raise Interrupted(f"what lies in {out} is kept", fix="the same command goes on with what is missing") from error
    typer.echo(str(out))


def import_scores(
    suite: SuiteName,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Result files of the official scorer.")],
    videos: Annotated[Path, typer.Option("--videos", metavar="FOLDER", help="The export that was scored.")],
    version: Annotated[
        str, typer.Option(metavar="TEXT", help="Version of the scorer, which its files do not say: 0.1.5, a commit.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write here only; default FOLDER/scores.json and RUN/scores/SUITE.json."
        ),
    ] = None,
) -> None:
    """Read the official scorer's results back: checked against the export, and shown by the run's next report."""
    from vidalign.bench.suites import import_scores as read_back
    from vidalign.bench.suites import open_suite

    with before_work(), owned(videos):
        for place in read_back(open_suite(suite), files, videos, version, out):
            typer.echo(str(place))
