"""Two commands in one folder: the second is refused before it loads anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import train, vidalign

from vidalign.owner import LOCK, owned
from vidalign.trainer import Trainer

COMMANDS = {
    "train": ("train", "recipe.yaml", "--run", "run"),
    "resume": ("train", "recipe.yaml", "--run", "run", "--resume"),
    "collect": ("collect", "recipe.yaml", "objective={name: ar_copo}", "--out", "run"),
    "merge": ("merge", "--semi", "a", "--on-policy", "b", "--out", "run"),
    "evaluate": ("evaluate", "--run", "run"),
    "import-scores": ("bench", "import-scores", "vbench", "x.json", "--videos", "run", "--version", "1"),
    "export": ("export", "--run", "other", "--out", "run/x.safetensors"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_command_is_refused_before_it_loads(
    name: str, recipe_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(Trainer, "__init__", loaded)
    for work in ("collect.collect_buffer", "merge.merge_runs", "evaluate.open_run", "export.open_run"):
        monkeypatch.setattr(f"vidalign.workflows.{work}", loaded)
    monkeypatch.setattr("vidalign.workflows.opened.check_finished", lambda folder, saved: None)
    with owned(Path("run"), ".x.safetensors" + LOCK if name == "export" else LOCK):
        before = sorted(Path("run").iterdir())
        assert vidalign(*COMMANDS[name]) == 2
        assert sorted(Path("run").iterdir()) == before
    told = capsys.readouterr().err
    assert "another command works in run" in told and f"process {os.getpid()} on" in told


@pytest.mark.usefixtures("unjudged")
def test_the_lock_of_a_killed_run_is_taken_over(recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with owned(Path("run")):
        entry = json.loads((Path("run") / LOCK).read_text())
    Path("run").mkdir()
    (Path("run") / LOCK).write_text(json.dumps({**entry, "pid": dead.pid}))
    assert train("trainer.steps=1") == 0
    told = capsys.readouterr().err
    assert f"left by process {dead.pid}, which has ended" in told and not (Path("run") / LOCK).exists()


def test_a_run_that_fails_leaves_no_lock(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Trainer) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert train() == 130
    assert not (Path("run") / LOCK).exists() and (Path("run") / "recipe.yaml").is_file()
