"""`vidalign train RECIPE`: check the recipe, train, evaluate before and after, write the report."""

from __future__ import annotations

import os
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidalign.cli.launch import Gpus, Nodes, Rendezvous, check_processes, relaunch
from vidalign.cli.options import Overrides, Plugins, RecipeArgument, Trust, report_warnings
from vidalign.errors import Interrupted, UsageError, UserError
from vidalign.owner import owned, refuse_owned
from vidalign.plugins import load_plugins_of

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.trainer import Trainer


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Folder of the run; default runs/NAME-TIME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in RUN.")] = False,
    trust_checkpoint: Trust = False,
    gpus: Gpus = 1,
    nodes: Nodes = 1,
    rendezvous: Rendezvous = None,
    plugin: Plugins = None,
) -> None:
    """Train by a recipe."""
    from vidalign.recipe import load_recipe

    if resume and run is not None:
        load_plugins_of(run)
    loaded = load_recipe(recipe, overrides)
    _check_folder(run, resume)
    check_processes(loaded, gpus, nodes)
    relaunch(gpus, nodes, rendezvous, run)
    if os.environ.get("RANK", "0") == "0":
        report_warnings(loaded.warnings)
    from vidalign.run_folder import new_run_dir  # heavy, and not needed to refuse a recipe

    folder = run or new_run_dir(loaded)
    words = [recipe, *(overrides or []), *(word for file in plugin or [] for word in ("--plugin", str(file)))]
    with owned(folder):
        _train(loaded, folder, resume, words, trust_checkpoint)


def _train(recipe: Recipe, run: Path, resume: bool, words: list[str], trust: bool) -> None:
    """Train and judge; words: what the command line named, to say how to go on."""
    from vidalign.engine import distributed
    from vidalign.trainer import Trainer
    from vidalign.workflows.fits import explaining_memory

    with explaining_memory(recipe, distributed.world_size()):
        trainer, folder = Trainer(recipe, run_dir=run, resume=resume, trust_checkpoint=trust), None
    try:
        with explaining_memory(recipe, distributed.world_size()):
            folder = trainer.fit()
        if distributed.rank() == 0:
            if trainer.stopped:
                typer.echo(f"stopped after step {trainer.step} of {recipe.trainer.steps}: {trainer.stopped}")
            _judge(folder)
    except KeyboardInterrupt:
        raise _interrupted(trainer, words, folder is not None) from None


def _judge(folder: Path) -> None:
    """Training has done its work: a fault of the judgement is reported, and is none of the command."""
    from vidalign.workflows.evaluate import evaluate_run

    try:
        evaluate_run(folder)
    except (UserError, OSError) as error:
        again = f"`vidalign evaluate --run {shlex.quote(str(folder))}` judges again"
        warnings.warn(f"the student is saved in {folder}, its evaluation failed: {error} - {again}", stacklevel=2)


def _check_folder(run: Path | None, resume: bool) -> None:
    """A run goes on only where one was begun, and another one is not written over it."""
    if run is None:
        if resume:
            raise UsageError("no run is named to go on with", where="--resume", fix="add --run RUN, its folder")
        return
    from vidalign.engine.checkpoint import Checkpoints
    from vidalign.recipe.resume import check_begun

    refuse_owned(run)
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is not a folder", where="--run", fix="name another one")
    saved = Checkpoints(run / "checkpoints").all_steps()
    check_begun(run, saved, resume)


def _interrupted(trainer: Trainer, arguments: list[str], trained: bool) -> Interrupted:
    """Which step is saved, and the command that goes on from it."""
    saved, folder = trainer.checkpoints.steps(), str(trainer.run_dir)
    again = shlex.join(["vidalign", "train", *arguments, "--run", folder])
    if trained:
        judge = shlex.join(["vidalign", "evaluate", "--run", folder])
        return Interrupted("training is done and the student is saved", where=folder, fix=f"judge it with `{judge}`")
    now = f"stopped after step {trainer.step} of {trainer.recipe.trainer.steps}"
    if not saved:
        return Interrupted(f"{now}, nothing is saved yet", where=folder, fix=f"start again with `{again}`")
    return Interrupted(f"{now}, step {saved[-1]} is saved", where=folder, fix=f"go on with `{again} --resume`")
