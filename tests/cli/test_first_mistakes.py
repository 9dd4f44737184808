"""The first mistakes of a newcomer: each ends in one clear error whose fix names the page that helps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from run_helpers import vidalign

ROOT = Path(__file__).parents[2]
WORLD = ("train", "world/astrolabe")
MISTAKES = {
    "a recipe's name is misspelt": (("train", "world/astrolab"), "'world/astrolabe'?", "recipes"),
    "a key is misspelt": ((*WORLD, "trainer.stepz=5"), "'trainer.stepz'", "recipes"),
    "a value is no number": ((*WORLD, "trainer.steps=many"), "must be int, not 'many'", "recipes"),
    "a prompt file is not there": ((*WORLD, "data.prompts=my.txt"), "my.txt cannot be read", "recipes"),
    "the world's rewards get other prompts": ((*WORLD, "data.prompts=own.txt"), "a panda eats", "rewards"),
    "a public checkpoint is no student yet": ((*WORLD, "student.path=public.pt"), "vidalign import", "real_students"),
    "an own reward without its file": ((*WORLD, "rewards={sharpest: 1.0}"), "--plugin FILE", "adding_a_reward"),
    "a group of one": ((*WORLD, "objective.group_size=1"), "use 2 or more", "methods/index"),
    "no teacher": (("train", "world/sft", "~teacher"), "add teacher", "teachers"),
    "prompts that processes cannot share": ((*WORLD, "--gpus", "3", "--run", "new"), "multiple of 3", "deepspeed"),
    "a run folder that is used": ((*WORLD, "--run", "used"), "add --resume", "troubleshooting"),
    "a run that is not finished": (("evaluate", "--run", "nothing"), "finish it with", "troubleshooting"),
    "a GPU that is too small": (("plan", "world/astrolabe", "--gpu", "1GB"), "a step needs", "memory"),
}


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the folder of somebody who begins."""
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text("a panda eats\na cat yawns\n")
    torch.save({"generator": {"model.x": torch.zeros(1)}}, "public.pt")
    manifest = {"step": 3, "time": "", "files": {}}
    Path("used/checkpoints/step-00000003").mkdir(parents=True)
    Path("used/checkpoints/step-00000003/manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_error_leads_to_the_page(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, message, page = MISTAKES[mistake]
    before = sorted(Path().rglob("*"))
    assert vidalign(*command) in (2, 3, 4)
    told = capsys.readouterr().err
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in told
    named = re.findall(r"docs/([\w/]+)\.md", line.rpartition(" - ")[2])
    assert named == [page], line
    assert (ROOT / "docs" / f"{page}.md").is_file()
    assert sorted(Path().rglob("*")) == before, "nothing was begun"


def test_ten_mistakes_are_tried() -> None:
    assert len(MISTAKES) >= 10
