"""`--gpus` and `--nodes`: run the same command again in one process a device, as torchrun does.

Processes hand their mistake to the one that started them, which reports the first one once and ends with its exit code.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidalign.errors import Interrupted, Problem, UsageError, UserError

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

CHILD = "TORCHELASTIC_ERROR_FILE"
"""Where a process that was started here leaves its mistake."""

Gpus = Annotated[
    int, typer.Option("--gpus", metavar="N", min=1, help="Processes on this machine, one a GPU (or a CPU process).")
]
Nodes = Annotated[int, typer.Option("--nodes", metavar="M", min=1, help="Machines; start the command on each.")]
Rendezvous = Annotated[
    str | None,
    typer.Option("--rendezvous", metavar="HOST:PORT", help="Where several machines meet: the first one's address."),
]


def torchrun_command(
    arguments: Sequence[str], gpus: int, nodes: int, rendezvous: str | None, run: Path | None
) -> list[str] | None:
    """The torchrun command for `arguments` of `vidalign`, or None where this process is the only one.

    Raises `UsageError` for several machines without a meeting point or a run folder that they share.
    """
    if gpus * nodes == 1 or "LOCAL_RANK" in os.environ:  # torchrun has started this process
        return None
    if nodes > 1 and not rendezvous:
        raise UsageError(
            f"{nodes} machines have no address to meet at",
            where="--rendezvous",
            fix="add --rendezvous HOST:PORT, the address of one of them, on each",
        )
    if run is None:
        raise UsageError(
            "several processes need the name of their run folder",
            where="--run",
            why="the default name carries the time, which may differ between them",
            fix="add --run RUN, a folder that all of them see",
        )
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    if nodes > 1:
        meet = ["--rdzv-backend", "c10d", "--rdzv-id", run.name, "--rdzv-endpoint", str(rendezvous)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(gpus), "--nnodes", str(nodes)]
    return [*launcher, *meet, "-m", "--", "vidalign.cli", *arguments]


def check_processes(recipe: Recipe, gpus: int, nodes: int = 1) -> None:
    """Raises `UserError` unless the processes get equal shares of a step, see `vidalign.recipe.sharing`."""
    from vidalign.recipe.sharing import processes_of_a_group

    processes_of_a_group(recipe, gpus * nodes)


def relaunch(gpus: int, nodes: int, rendezvous: str | None, run: Path | None) -> None:
    """Where several processes are requested, run them, and leave with their exit code; return otherwise."""
    command = torchrun_command(sys.argv[1:], gpus, nodes, rendezvous, run)
    if command is None:
        return
    assert run is not None, "torchrun_command requires it"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, get_args_parser

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its failures are reported below
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, with a warning
    config, program, arguments = config_from_args(get_args_parser().parse_args(command[3:]))
    try:
        elastic_launch(config, program)(*arguments)
    except (SignalException, KeyboardInterrupt):
        raise Interrupted(f"stopped all {gpus * nodes} processes", where=str(run), fix=_saved(run)) from None
    except ChildFailedError as error:
        raise _told(error.failures, run) from None
    raise typer.Exit


def leave_mistake(error: BaseException, code: int) -> bool:
    """In a process that `relaunch` started: hand the mistake over, to be reported once. False elsewhere."""
    if CHILD not in os.environ:
        return False
    known = isinstance(error, UserError)
    text = str(error) if known else "".join(traceback.format_exception(error))
    content = {"message": text, "known": known, "code": code, "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(os.environ[CHILD]).write_text(json.dumps({"message": content}), encoding="utf-8")
    return True


def _told(failures: dict[int, Any], run: Path) -> UserError:
    """The mistake that came first: a lost process, else what a process left; a fault of vidalign has its traceback."""
    killed = [r for r, f in failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    rank = killed[0] if killed else min(failures, key=lambda r: failures[r].timestamp)
    failure = failures[rank]
    left = _left(failure.error_file)
    if killed or not left:
        how = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"code {failure.exitcode}"
        why = "the system may have run out of memory" if failure.exitcode == -signal.SIGKILL else ""
        return UserError(f"the process of rank {rank} was lost ({how})", where=str(run), why=why, fix=_saved(run))
    error = UserError(f"the process of rank {rank} failed", where=str(run), fix=_saved(run))
    error.exit_code = failure.exitcode
    if left["known"]:
        error.problems = [Problem(line) for line in left["message"].splitlines()]
    else:
        typer.echo(left["message"], err=True)
    return error


def _left(file: str | None) -> dict[str, Any]:
    """What a process left, nothing where it could not."""
    try:
        return dict(json.loads(Path(file or "").read_text(encoding="utf-8"))["message"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _saved(run: Path) -> str:
    """What of a run is saved, and how to go on."""
    from vidalign.engine.checkpoint import Checkpoints

    saved = Checkpoints(run / "checkpoints").steps()
    return f"step {saved[-1]} is saved, go on with --resume" if saved else "nothing is saved yet, start again"
