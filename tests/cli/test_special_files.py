"""Pipes and devices in the place of a file are refused at once: nobody waits for their other end."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_helpers import SFT, vidalign

from vidalign.data.pictures import picture
from vidalign.errors import DataError
from vidalign.teachers.privilege import dense_prompts

PROMPT = ("--prompt", "a large red circle", "--out", "x.gif")


@pytest.fixture
def run(finished: Path, recipe_folder: Path) -> Path:
    shutil.copytree(finished / "run", "run")
    return Path("run")


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """A command that waits is ended; pytest has no limit of its own."""

    def late(*_: Any) -> None:
        raise TimeoutError("the command waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


PLACES = {
    "recipe": ("special.yaml", ("train", "special.yaml")),
    "recipe to validate": ("special.yaml", ("validate", "special.yaml")),
    "recipe to show": ("special.yaml", ("show", "special.yaml")),
    "base": ("special.yaml", ("validate", "inherits.yaml")),
    "prompts": ("special.txt", ("train", "recipe.yaml", "data.prompts=special.txt", "--run", "new")),
    "prompts to validate": ("special.txt", ("validate", "recipe.yaml", "data.prompts=special.txt")),
    "evaluation prompts": ("special.txt", ("train", "recipe.yaml", "data.eval_prompts=special.txt", "--run", "new")),
    "prompts of the evaluation": ("special.txt", ("evaluate", "--run", "run", "evaluation.prompts=special.txt")),
    "plugin": ("special.py", ("train", "recipe.yaml", "--plugin", "special.py", "--run", "new")),
    "weights": ("special.safetensors", ("train", "recipe.yaml", "~student.init", "student.path=special.safetensors")),
    "clip folder": ("special", ("train", "recipe.yaml", *SFT, "teacher={name: store, path: special}", "--run", "new")),
    "a clip": ("clips/a.mp4", ("train", "recipe.yaml", *SFT, "teacher={name: store, path: clips}", "--run", "new")),
    "an array": ("clips/a.npz", ("train", "recipe.yaml", *SFT, "teacher={name: store, path: clips}", "--run", "new")),
    "tensors": (
        "clips/a.safetensors",
        ("train", "recipe.yaml", *SFT, "teacher={name: store, path: clips}", "--run", "new"),
    ),
    "table": ("special.parquet", ("train", "recipe.yaml", *SFT, "teacher={name: store, path: special.parquet}")),
    "buffer": (
        "buffer/buffer.json",
        ("train", "recipe.yaml", "objective={name: ar_copo, buffer: buffer}", "--run", "new"),
    ),
    "run": ("special", ("train", "recipe.yaml", "--run", "special")),
    "run to evaluate": ("special", ("evaluate", "--run", "special")),
    "recipe of a run": ("run/recipe.yaml", ("evaluate", "--run", "run")),
    "recipe of a run to resume": ("run/recipe.yaml", ("train", "recipe.yaml", "--run", "run", "--resume")),
    "student of a run": ("run/student.safetensors", ("sample", "--run", "run", *PROMPT)),
    "log of a run": ("run/metrics.jsonl", ("evaluate", "--run", "run")),
    "log to go on with": (
        "new/metrics.jsonl",
        ("train", "recipe.yaml", "--run", "new", "trainer.steps=1"),
    ),
    "evaluation of a run": ("run/evaluation.json", ("export", "--run", "run", "--out", "x.safetensors")),
    "report of a run": ("run/report.html", ("evaluate", "--run", "run")),
    "manifest": (
        "run/checkpoints/step-00000002/manifest.json",
        ("export", "--run", "run", "--out", "x.safetensors", "--step", "2"),
    ),
    "engine": (
        "run/checkpoints/step-00000002/student/engine.pt",
        ("export", "--run", "run", "--out", "x.safetensors", "--step", "2"),
    ),
    "lock of a run": ("run/.owner.json", ("evaluate", "--run", "run")),
    "clip to write": ("x.gif", ("sample", "--run", "run", *PROMPT)),
    "protocol": ("special.yaml", ("bench", "run", "special.yaml")),
    "result to report": ("special.json", ("bench", "report", "special.json")),
    "result to compare": ("special.json", ("bench", "compare", "special.json:base", "astrolabe")),
    "manifest of an export": (
        "out/manifest.json",
        ("bench", "import-scores", "vbench", "x.json", "--videos", "out", "--version", "1"),
    ),
    "prompts of a suite": (
        "special.txt",
        ("bench", "export-videos", "vbench", "--prompts", "special.txt", "--run", "run", "--out", "videos"),
    ),
}


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("name", PLACES)
def test_a_place_where_a_file_belongs(name: str, make: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, command = PLACES[name]
    Path("inherits.yaml").write_text("base: special.yaml\n", encoding="utf-8")
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    assert vidalign(*command) in (2, 3)
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and "Traceback" not in told and path.stem.split("-")[0] in told


@pytest.mark.parametrize("make", [pipe, device])
def test_dense_prompts_and_pictures(make: Any, recipe_folder: Path) -> None:
    make(Path("special.json"))
    with pytest.raises(DataError, match="'special.json' cannot be read.*not a regular file"):
        dense_prompts(["a circle"], "special.json")
    with pytest.raises(ValueError, match="a picture cannot be read.*not a regular file"):
        picture("special.json", Path())
