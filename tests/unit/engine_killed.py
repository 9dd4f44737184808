"""Saves checkpoints in child processes that are killed at every possible moment; prints what was seen as JSON.

    python engine_killed.py FOLDER

The n-th child gets SIGKILL just before its n-th operation on the file system (opening, renaming, removing, ...), or
by the kernel in the middle of a write, when a file passes n bytes. Run as a script, so that it forks a quiet process.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from engine_helpers import numbers, setup, train

from vidalign.engine.checkpoint import Checkpoints

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
LIMITS = [0, 1, 100, 1000, 3000, 6000, 20000]


def run(trained: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts and state of a run after some steps."""
    _, policies, engine = setup(optimizer="adamw")
    for step in range(trained):
        train(engine, numbers(step, 4, 3))
    return {"student": engine, "policies": policies}, {"cursor": trained, "buffer": torch.arange(trained)}


saved_run = functools.cache(run)
"""The same, not to be trained or loaded into."""


def kill_before_operation(n: int, root: Path) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in OPERATIONS and str(arguments[0]).startswith(str(root)):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_in_write(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def save_in_child(root: Path, step: int, doom: Any, keep: int) -> bool:
    """Whether the child was killed."""
    parts, state = saved_run(step)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        doom()
        Checkpoints(root, keep_last=keep).save(step, state, parts, score=float(step))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def look(root: Path, keep: int) -> dict[str, Any]:
    """What a new process finds, whether that is exactly what was saved, and whether it can go on from there."""
    parts, _ = run(0)
    checkpoints = Checkpoints(root, keep_last=keep)
    step, state = checkpoints.load(parts)
    expected = saved_run(step)[0]["student"]
    exact = all(torch.equal(a, b) for a, b in zip(parts["student"].trainable, expected.trainable, strict=True))
    exact = exact and state["cursor"] == step and torch.equal(state["buffer"], torch.arange(step))
    checkpoints.save(9, {"cursor": 9}, parts)
    hidden = [p.name for p in root.iterdir() if p.name.startswith(".")]
    return {"step": step, "exact": exact, "goes_on": checkpoints.steps()[-1] == 9, "hidden": hidden}


def prepared(root: Path, step: int, keep: int) -> None:
    """A folder with the checkpoint of `step` alone."""
    template = root.with_name(f"template{step}")
    if not template.exists():
        parts, state = saved_run(step)
        Checkpoints(template, keep_last=keep).save(step, state, parts)
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)


def scenario(root: Path, first: int, keep: int) -> list[dict[str, Any]]:
    """The checkpoint of step `first` is there, and saving step 2 is killed at one moment after another."""
    findings = []
    for moment in range(1, 1000):
        prepared(root, first, keep)
        killed = save_in_child(root, 2, lambda n=moment: kill_before_operation(n, root), keep)
        findings.append({"moment": moment, **look(root, keep)})
        if not killed:
            break
    for limit in LIMITS:
        prepared(root, first, keep)
        killed = save_in_child(root, 2, lambda n=limit: kill_in_write(n), keep)
        findings.append({"limit": limit, "killed": killed, **look(root, keep)})
    return findings


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    cases = {"next": (1, 2), "prune": (1, 1), "replace": (2, 1)}
    print(json.dumps({name: scenario(folder, *case) for name, case in cases.items()}))
