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


def commands(folder: Path, *all_words: list[str]) -> list[tuple[int, str]]:
    """Exit code and standard error of commands that one process runs in the folder, one after the other."""
    jobs = [f"command{number}" for number in range(len(all_words))]
    for job, words in zip(jobs, all_words, strict=True):
        (folder / f"{job}.json").write_text(json.dumps(words), encoding="utf-8")
    worker = Path(__file__).with_name("command_worker.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(worker), ".", *jobs]
    subprocess.run(command, cwd=folder, env=environment, timeout=300, stdout=subprocess.DEVNULL, check=True)
    return [json.loads((folder / f"{job}-rank0.json").read_text(encoding="utf-8")) for job in jobs]


def train(steps: int, *arguments: str) -> list[str]:
    return ["train", "recipe.yaml", f"trainer.steps={steps}", "--run", "run", *arguments]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    text = RECIPE + f"engine: {ENGINES['zero2']}\nevaluation: {{count: 1, frames: 6}}\n"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    ((code, words),) = commands(folder, train(1))
    assert code == 0, words
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
    plain = train(2, "--resume", *foreign(folder, part))
    ((code, words),) = commands(folder, plain)
    assert code == 3 and words.count("error:") == 1 and "Traceback" not in words, words
    assert f"run/checkpoints/step-00000001/{part}/deepspeed/" in words and "--trust-checkpoint" in words
    assert not (folder / "run" / "checkpoints" / "step-00000002").exists()
    ((code, words),) = commands(folder, [*plain, "--trust-checkpoint"])
    assert code == 0, words
    assert (folder / "run" / "checkpoints" / "step-00000002").is_dir()


def test_the_student_of_a_step(folder: Path) -> None:
    export = ["export", "--run", "run", "--out", "x.safetensors", "--step", "1"]
    sample = ["sample", "--run", "run", "--step", "1", "--prompt", "a large red circle"]
    theirs = foreign(folder, "student")
    exported, refused, trusted = commands(
        folder,
        export,
        [*sample, "--out", "refused.gif", *theirs],
        [*sample, "--out", "trusted.gif", *theirs, "--trust-checkpoint"],
    )
    assert tuple(exported) == (0, "")
    found, final = load_file(folder / "x.safetensors"), load_file(folder / "run" / "student.safetensors")
    assert found.keys() == final.keys() and all(torch.equal(found[name], final[name]) for name in final)
    code, words = refused
    assert code == 3 and "loading it runs code" in words and not (folder / "refused.gif").exists(), words
    assert trusted[0] == 0 and (folder / "trusted.gif").is_file(), trusted[1]


def test_a_damaged_pickle(folder: Path) -> None:
    """An intact checkpoint whose file of DeepSpeed holds something else."""
    name = "student/deepspeed/mp_rank_00_model_states.pt"
    checkpoint = folder / "run" / "checkpoints" / "step-00000001"
    torch.save({"module": 3}, checkpoint / name)
    content, manifest = (checkpoint / name).read_bytes(), json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    export = ["export", "--run", "run", "--out", "x.safetensors", "--step", "1"]
    for code, words in commands(folder, train(2, "--resume"), export):
        assert code == 3 and words.count("error:") == 1 and "Traceback" not in words, words
