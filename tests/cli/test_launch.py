"""`--gpus` and `--nodes` start the same command under torchrun; `--resume` wants the recipe that the run began with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import RECIPE, train

from vidalign.cli.launch import torchrun_command
from vidalign.errors import UserError

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
PLUGIN = """\
import os, signal, torch
from vidalign import registry
from vidalign.errors import DataError
from vidalign.rewards.base import Reward

class Odd(Reward):
    name = "odd"
    def score(self, *arguments, **named):
        END
registry.register("rewards", "odd")(Odd)
"""


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    command = ["train", "recipe.yaml", "--run", "run", "--gpus", "2", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "vidalign.cli", *command],
        cwd=folder,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=300)
    return process.returncode, told


def test_prompts_that_cannot_be_shared_out_start_nobody(tmp_path: Path) -> None:
    code, told = end(start(tmp_path, "trainer.prompts_per_step=3"))
    assert code == 2 and told.count("\n") == 1
    assert "3 prompts a step cannot be shared out to 2 processes - trainer.prompts_per_step" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("end_of_process", "code", "message"),
    [
        ("raise DataError('no more clips')", 3, "error: no more clips"),
        (
            "os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else 0",
            3,
            "the process of rank 1 was lost (SIGKILL) - run",
        ),
    ],
)
def test_a_process_that_ends_is_told_once(end_of_process: str, code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN.replace("END", end_of_process), encoding="utf-8")
    found, told = end(start(tmp_path, "--plugin", "plugin.py", "rewards={odd: 1.0}"))
    assert found == code, told
    assert told.count(message) == 1 and "Traceback" not in told and told.count("error:") == 1, told


def test_ctrl_c_ends_all_processes_and_says_what_is_saved(tmp_path: Path) -> None:
    process = start(tmp_path, "trainer.steps=100000", "trainer.eval_every=0")
    started = time.monotonic()
    while not list(tmp_path.glob("run/checkpoints/step-*")) and time.monotonic() < started + 120:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code, told = end(process)
    assert code == 130 and "interrupted: stopped all 2 processes - run - step " in told, told
    assert "is saved, go on with --resume" in told and "Traceback" not in told, told


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
    with pytest.raises(UserError, match="no address to meet at"):
        torchrun_command(["train"], 8, 2, None, Path("run"))
    with pytest.raises(UserError, match="run folder"):
        torchrun_command(["train"], 2, 1, None, None)


def test_resume_with_another_recipe(recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("trainer.steps=1") == 0
    began = Path("run/recipe.yaml").read_bytes()
    assert train("--resume", "trainer.learning_rate=1.0e-3", "objective.beta=0.5") == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "trainer.learning_rate: 0.01 -> 0.001" in told and "objective.beta: 0.1 -> 0.5" in told
    assert Path("run/recipe.yaml").read_bytes() == began
    assert train("--resume", "trainer.steps=2", "trainer.micro_batch=1") == 0
