"""A ZeRO-2 checkpoint with a discriminator: files of another user are not unpickled, by no command, unless trusted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from afd_worker import ENGINES, RECIPE
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
FOREIGN = """
import os
from pathlib import Path

plain = Path.stat


def stat(self, **options):
    found = plain(self, **options)
    if "/{part}/deepspeed/" not in str(self):
        return found
    return os.stat_result((*found[:4], {owner}, *found[5:10]))


Path.stat = stat
"""


def vidalign(folder: Path, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "vidalign.cli", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return done.returncode, done.stderr


def train(folder: Path, steps: int, *arguments: str) -> tuple[int, str]:
    return vidalign(folder, "train", "recipe.yaml", f"trainer.steps={steps}", "--run", "run", *arguments)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    text = RECIPE + f"engine: {ENGINES['zero2']}\nevaluation: {{count: 1, frames: 6}}\n"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    code, told = train(folder, 1)
    assert code == 0, told
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "run here")
    return tmp_path / "run here"


def foreign(folder: Path, part: str) -> tuple[str, str]:
    """A plugin file that makes one part's files those of another user."""
    (folder / "foreign.py").write_text(FOREIGN.format(part=part, owner=os.getuid() + 1), encoding="utf-8")
    return "--plugin", "foreign.py"


@pytest.mark.parametrize("part", ["student", "discriminator"])
def test_resuming(part: str, folder: Path) -> None:
    code, told = train(folder, 2, "--resume", *foreign(folder, part))
    assert code == 3 and told.count("error:") == 1 and "Traceback" not in told, told
    assert f"run/checkpoints/step-00000001/{part}/deepspeed/" in told and "--trust-checkpoint" in told
    assert not (folder / "run" / "checkpoints" / "step-00000002").exists()
    code, told = train(folder, 2, "--resume", "--trust-checkpoint", *foreign(folder, part))
    assert code == 0, told
    assert (folder / "run" / "checkpoints" / "step-00000002").is_dir()


def test_the_student_of_a_step(folder: Path) -> None:
    export = ("export", "--run", "run", "--out", "x.safetensors", "--step", "1")
    assert vidalign(folder, *export) == (0, "")
    found, final = load_file(folder / "x.safetensors"), load_file(folder / "run" / "student.safetensors")
    assert found.keys() == final.keys() and all(torch.equal(found[name], final[name]) for name in final)
    sample = ("sample", "--run", "run", "--step", "1", "--prompt", "a large red circle", "--out", "x.gif")
    code, told = vidalign(folder, *sample, *foreign(folder, "student"))
    assert code == 3 and "loading it runs code" in told and not (folder / "x.gif").exists(), told
    code, told = vidalign(folder, *sample, *foreign(folder, "student"), "--trust-checkpoint")
    assert code == 0 and (folder / "x.gif").is_file(), told


def test_a_damaged_pickle(folder: Path) -> None:
    """An intact checkpoint whose file of DeepSpeed holds something else."""
    name = "student/deepspeed/mp_rank_00_model_states.pt"
    checkpoint = folder / "run" / "checkpoints" / "step-00000001"
    torch.save({"module": 3}, checkpoint / name)
    content, manifest = (checkpoint / name).read_bytes(), json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    for command in (
        ("train", "recipe.yaml", "trainer.steps=2", "--resume"),
        ("export", "--out", "x.safetensors", "--step", "1"),
    ):
        code, told = vidalign(folder, *command, "--run", "run")
        assert code == 3 and told.count("error:") == 1 and "Traceback" not in told, told
