"""`vidalign-serve` from its built wheel, where vidalign, diffusers, transformers and deepspeed cannot be imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from test_serve import address

import vidalign
from vidalign.rewards.remote import Remote

REPOSITORY = Path(__file__).parents[2]
FORBIDDEN = ("vidalign", "diffusers", "deepspeed", "transformers", "peft", "accelerate", "typer", "omegaconf")
BARRIER = f"""\
import sys

class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Barrier())
"""
REWARD = """\
from dataclasses import dataclass
from helper import mean

class Redness:
    name, version = "redness", "2024-1"

    @dataclass
    class Config:
        factor: float = 1.0

    def __init__(self, config):
        self.config = config

    def score(self, clips, prompts, metadata=(), fps=None):
        return {"redness": mean(clips[:, :, 0]) * self.config.factor, "seconds": [clips.shape[1] / fps] * len(prompts)}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, built and installed without the network."""
    folder = tmp_path_factory.mktemp("alone")
    pip, built, site = (sys.executable, "-m", "pip"), folder / "wheels", folder / "site"
    offline = ("--quiet", "--no-deps", "--no-index")
    for command in (
        (*pip, "wheel", *offline, "--no-build-isolation", "-w", built, REPOSITORY / "serve"),
        (*pip, "install", *offline, "--target", site, "-f", built, "vidalign-serve"),
    ):
        done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (folder / "site" / "sitecustomize.py").write_text(BARRIER)
    return folder


def environment(installed: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"PYTHONPATH": str(installed / "site"), "OMP_NUM_THREADS": "1"}


def test_it_serves_a_reward_of_a_file(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "redness.py").write_text(REWARD)
    (tmp_path / "helper.py").write_text("def mean(red):\n    return red.mean((1, 2, 3))\n")
    program = [str(installed / "site" / "bin" / "vidalign-serve")]
    command = [sys.executable, *program, "--reward", "redness.py:Redness", "factor=2", "--port", "0", "--batch", "2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(installed), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        pinned = {"reward": "redness", "version": "2024-1", "settings": {"factor": 2.0}, "dtype": "float32"}
        reward = Remote(Remote.Config(urls=[address(process)], **pinned))
        clips = torch.rand(5, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        scores = reward.score(clips, list("abcde"), fps=8.0)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    torch.testing.assert_close(scores["remote"], 2 * clips[:, :, 0].double().mean((1, 2, 3)), rtol=1e-6, atol=0)
    assert scores["seconds"].tolist() == [0.5] * 5


def test_what_cannot_start_is_one_line(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "class Broken:\n    name = 'broken'\n\n"
        "    def score(self, clips, prompts):\n        raise OSError('no weights')\n"
    )

    def refused(*arguments: str) -> str:
        command = [sys.executable, "-m", "vidalign_serve", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment(installed), capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    command = [sys.executable, "-m", "vidalign_serve", "--reward", "broken.py:Broken", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(installed), capture_output=True, text=True)
    assert done.returncode == 3 and "OSError: no weights - repair it, or start with --no-warm-up" in done.stderr
    told = refused("--reward", "hps_v3")
    assert told == "error: 'hps_v3' names no reward - give file.py:Class or module:Class\n"
    assert "there is no token" in refused("--reward", "a:B", "--host", "0.0.0.0")


def test_it_ends_while_a_reward_computes(installed: Path, tmp_path: Path) -> None:
    """Native code in a thread that is left behind would abort the process: exit code -6 in place of 0."""
    body = "print('scoring', flush=True)\n        while True: clips.float() @ clips.float().mT"
    text = f"class Endless:\n    name = 'endless'\n\n    def score(self, clips, prompts):\n        {body}\n"
    (tmp_path / "endless.py").write_text(text)
    command = [sys.executable, "-m", "vidalign_serve", "--reward", "endless.py:Endless", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(installed), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == "scoring\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == "", errors


def test_it_asks_for_nothing_of_ours(installed: Path) -> None:
    (metadata,) = (installed / "site").glob("vidalign_serve-*.dist-info/METADATA")
    needed = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist")]
    assert len(needed) == 6 and not any(name in line for line in needed for name in FORBIDDEN)
    packed = {file.name for file in (installed / "site" / "vidalign_serve").glob("*.*")}
    assert packed == {file.name for file in (REPOSITORY / "vidalign" / "serving").glob("*.*")}
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    alone = tomllib.loads((REPOSITORY / "serve" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert alone["version"] == vidalign.__version__
    shared = {one for one in ours["optional-dependencies"]["serve"] if not one.startswith("websockets")}  # of `play`
    assert shared <= set(alone["dependencies"])
