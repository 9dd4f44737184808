"""Runs on one and on two processes, over gloo on the CPU.

Processes are forked from a server that has imported torch once (`multiprocessing`'s forkserver), so that a run costs
its own time only. They find a plugin by its file or by module and name: it must stand at the top of a module.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vidalign import registry
from vidalign.engine import distributed
from vidalign.recipe import load_recipe
from vidalign.testing.plugins import broken, lent
from vidalign.testing.trial import Outcome, Trial, finished
from vidalign.trainer import Trainer

STEPS = 2
"""The second step begins with what the first has changed."""
TIMEOUT = 300.0
"""Seconds after which a run is given up."""
PRELOADED = ["vidalign.testing.ranks", "diffusers.models.transformers.transformer_wan", "transformers.generation.utils"]
PLAIN = (
    "trainer.optimizer=sgd",
    "trainer.learning_rate=0.1",
    "trainer.clip=0",
    "trainer.prompts_per_step=4",
    f"trainer.steps={STEPS}",
)
"""Steps along the gradient: an adaptive optimiser would enlarge rounding where a gradient is zero."""


@dataclass(frozen=True)
class Job:
    """A run that another process can find: plain text only."""

    module: str
    qualname: str
    plugins: list[str]
    file: str
    overrides: list[str]
    folder: str


def train_on(processes: int, trial: Trial) -> Outcome:
    """The run of a trial on so many processes, as the first of them sees it.

    Raises `AssertionError` with the traceback of the process that failed.
    """
    folder = trial.folder / f"{trial.name}-ranks{processes}"
    folder.mkdir(exist_ok=True)
    plugin = registry.get("objectives", trial.name)
    overrides = trial.settings(*PLAIN)
    job = Job(plugin.__module__, plugin.__qualname__, registry.plugin_files(), str(trial.file), overrides, str(folder))
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(PRELOADED)
    port = _free_port()
    ranks = [start.Process(target=_rank, args=(rank, processes, port, job), daemon=True) for rank in range(processes)]
    for process in ranks:
        process.start()
    _wait(trial.name, ranks, folder)
    outcome: Outcome = torch.load(folder / "outcome.pt", weights_only=False)
    return outcome


def _wait(name: str, ranks: list[Any], folder: Path) -> None:
    """Until all have ended; when one fails the others are ended too."""
    deadline = time.monotonic() + TIMEOUT
    while any(process.is_alive() for process in ranks):
        if any(process.exitcode for process in ranks) or time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(0.02)
    failed = [rank for rank, process in enumerate(ranks) if process.exitcode]
    errors = sorted(folder.glob("error-*.txt"))
    words = errors[0].read_text(encoding="utf-8") if errors else f"no answer within {TIMEOUT:g} s"
    if failed:
        broken(name, f"fails on {len(ranks)} processes, in process {failed[0]}:\n{words}")


def _rank(rank: int, size: int, port: int, job: Job) -> None:
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    os.environ.update(group, RANK=str(rank), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    try:
        distributed.setup()
        with lent("objectives", _plugin(job)):
            trainer = Trainer(load_recipe(job.file, job.overrides), Path(job.folder) / "run")
            outcome = finished(trainer)
        if rank == 0:
            torch.save(outcome, Path(job.folder) / "outcome.pt")
        distributed.barrier()
        distributed.shutdown()
    except BaseException:
        (Path(job.folder) / f"error-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise SystemExit(1) from None


def _plugin(job: Job) -> Any:
    """The class of the objective, imported again."""
    for file in job.plugins:
        registry.load_plugin_file(file)
    plugin: Any = importlib.import_module(job.module)
    for part in job.qualname.split("."):
        plugin = getattr(plugin, part)
    return plugin


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
