"""`vidalign export`: the student of a run in a form that others read, with provenance and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vidalign.cli.options import Best, Plugins, Step, Trust
from vidalign.errors import UsageError
from vidalign.owner import LOCK, owned


def export(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The folder of a run, or of an imported student.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="The same, as other commands name it.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File or folder to write; default RUN/export/FORM.")] = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="single: one file for vidalign. Of video students also diffusers: a folder; original: one file "
            "under the names of the released Wan code; lora: the trained adapter. Of language students also "
            "transformers: a folder; peft: the trained adapter.",
        ),
    ] = "single",
    dtype: Annotated[
        Literal["", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the tensors, default as stored; 16 bits halve the files."),
    ] = "",
    push: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub too, with a model card; off by default.")
    ] = "",
    step: Step = None,
    best: Best = False,
    trust_checkpoint: Trust = False,
    plugin: Plugins = None,
) -> None:
    """Write the student of a run for others to use."""
    source = _source(folder, run)
    file = to in ("single", "original")
    target = out or source / "export" / (f"{to}.safetensors" if file else to)
    _check_target(target, source, file)
    from vidalign.students.hub import is_student_folder
    from vidalign.workflows.export import export_run
    from vidalign.workflows.opened import check_finished
    from vidalign.workflows.push import check_repository, push_export
    from vidalign.workflows.saved import Saved

    saved = Saved(step, best, trust_checkpoint)
    check_repository(push)
    if not is_student_folder(source):
        check_finished(source, saved)
    with owned(target.parent, f".{target.name}{LOCK}"):
        written = export_run(source, target, dtype, saved, to)
    typer.echo(str(written.path))
    if written.note:
        typer.echo(written.note, err=True)
    if push:
        typer.echo(push_export(source, written.path, push, to))


def _check_target(target: Path, source: Path, file: bool) -> None:
    """What is written has the name of its kind, and does not take the place of the student that is read."""
    from vidalign.workflows.opened import student_file

    if file and target.suffix != ".safetensors":
        raise UsageError(
            f"a student cannot be written as {target.name!r}",
            where="--out",
            why="its weights are a safetensors file",
            fix="end the file name in .safetensors",
        )
    if target.resolve() == student_file(source).resolve():
        why = "an export in another type would take its place"
        raise UsageError(f"{target} is the student itself", where="--out", why=why, fix="name another file")


def _source(folder: Path | None, run: Path | None) -> Path:
    """What is exported: named once, as an argument or with --run."""
    if (folder is None) == (run is None):
        what = "no run is named" if folder is None else "two runs are named"
        raise UsageError(what, where="RUN", fix="name one: vidalign export RUN")
    return folder or run or Path()
