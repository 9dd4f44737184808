"""`--gpus` and `--nodes` start the same command under torchrun; `--resume` wants the recipe that the run began with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import RECIPE, train

from vidalign.cli.launch import torchrun_command
from vidalign.errors import UserError


def test_two_processes_are_started(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    command = ["train", "recipe.yaml", "--run", "run", "--gpus", "2", "trainer.prompts_per_step=3"]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "vidalign.cli", *command],
        cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert "3 prompts a step cannot be shared out to 2 processes" in done.stderr


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert torchrun_command(["train"], 1, 1, None, None) is None
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process that torchrun has started
    assert torchrun_command(["train"], 2, 1, None, Path("run")) is None


def test_several_machines_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    command = torchrun_command(["train", "x", "--gpus", "8"], 8, 2, "first:29500", Path("runs/name"))
    assert command is not None
    words = " ".join(command)
    assert "--nproc-per-node 8 --nnodes 2" in words and "--rdzv-endpoint first:29500" in words
    assert words.endswith("-m -- vidalign.cli train x --gpus 8")
    with pytest.raises(UserError, match="where to meet"):
        torchrun_command(["train"], 8, 2, None, Path("run"))
    with pytest.raises(UserError, match="run folder"):
        torchrun_command(["train"], 2, 1, None, None)


def test_resume_with_another_recipe(
    recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("trainer.steps=1") == 0
    began = Path("run/recipe.yaml").read_bytes()
    assert train("--resume", "trainer.learning_rate=1.0e-3", "objective.beta=0.5") == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "trainer.learning_rate: 0.01 -> 0.001" in told and "objective.beta: 0.1 -> 0.5" in told
    assert Path("run/recipe.yaml").read_bytes() == began
    assert train("--resume", "trainer.steps=2", "trainer.micro_batch=1") == 0
