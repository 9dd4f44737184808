"""`--gpus` and `--nodes`: run the same command again under torchrun, one process a device."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vidalign.errors import UsageError

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
    """The torchrun command for `arguments` of `vidalign`, or None where this process is all that is asked for.

    Raises `UsageError` for several machines without a meeting point or a run folder that they share.
    """
    if gpus * nodes == 1 or "LOCAL_RANK" in os.environ:  # torchrun has started this process
        return None
    if nodes > 1 and not rendezvous:
        raise UsageError(
            f"{nodes} machines do not know where to meet",
            where="--rendezvous", fix="add --rendezvous HOST:PORT, the address of one of them, on each",
        )  # fmt: skip
    if run is None:
        raise UsageError(
            "several processes need the name of their run folder",
            where="--run", why="the default name carries the time, which may differ between them",
            fix="add --run RUN, a folder that all of them see",
        )  # fmt: skip
    meet = ["--standalone"]
    if nodes > 1:
        meet = ["--rdzv-backend", "c10d", "--rdzv-id", run.name, "--rdzv-endpoint", str(rendezvous)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(gpus), "--nnodes", str(nodes)]
    return [*launcher, *meet, "-m", "--", "vidalign.cli", *arguments]


def relaunch(gpus: int, nodes: int, rendezvous: str | None, run: Path | None) -> None:
    """Replace this process by torchrun where several processes are asked for; return otherwise."""
    command = torchrun_command(sys.argv[1:], gpus, nodes, rendezvous, run)
    if command is not None:
        sys.stdout.flush()
        os.execv(command[0], command)
