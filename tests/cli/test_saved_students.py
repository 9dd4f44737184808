"""`--best` and `--step N` of sample, evaluate and export: the students that a run's checkpoints hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import RECIPE, SFT, edit_manifest, student, vidalign
from safetensors.torch import load_file

from vidalign.students.video import checkpoint

ADAPTER = "student.adapter={rank: 2, alpha: 4, targets: blocks}"
PROMPT = ("--prompt", "a large red circle", "--out", "x.gif")


def made(tmp_path_factory: pytest.TempPathFactory, *overrides: str) -> Path:
    """Three steps, scored after the first and the second one."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    fixed = ("trainer.steps=3", "trainer.keep=3", "trainer.eval_every=1", *SFT)
    assert vidalign("train", str(folder / "recipe.yaml"), *fixed, *overrides, "--run", str(folder / "run")) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory)


@pytest.fixture
def run(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(plain, "run")
    for step, score in ((1, 0.25), (2, 0.75), (3, None)):
        edit_manifest(Path("run"), step, score=score)
    return Path("run")


def export(*arguments: str, run: str = "run") -> dict[str, torch.Tensor]:
    assert vidalign("export", "--run", run, "--out", "x.safetensors", *arguments) == 0
    return load_file("x.safetensors")


def same(found: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return found.keys() == other.keys() and all(torch.equal(found[name], other[name]) for name in found)


def test_the_step_decides(run: Path) -> None:
    final = student("run")
    assert same(export("--step", "3"), final), "the last checkpoint holds the final student"
    second = export("--step", "2")
    assert not same(second, final) and not same(second, export("--step", "1"))
    assert same(export("--best"), second), "step 2 has the highest score"


@pytest.mark.parametrize(
    "overrides", [(ADAPTER,), ("trainer.ema_decay=0.5",), (ADAPTER, "trainer.ema_decay=0.5")], ids=str
)
def test_adapters_and_averages(
    overrides: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path_factory, *overrides)
    monkeypatch.chdir(folder.parent)
    assert same(export("--step", "3"), student("run")) and not same(export("--step", "2"), student("run"))
    metadata = checkpoint.read(Path("x.safetensors"))[1]
    assert vidalign("evaluate", "--run", "run", "--step", "2") == 0
    scores = json.loads(Path("run/evaluation-step-2.json").read_text())["values"]["after"]["world_auditor/composite"]
    judged = sum(scores) / len(scores)
    assert float(metadata["held_out_score"]) == pytest.approx(judged, abs=1e-4), "the weights that are exported"


def test_an_export_carries_its_own_scores(run: Path) -> None:
    export("--step", "1")
    metadata = checkpoint.read(Path("x.safetensors"))[1]
    assert metadata["step"] == "1" and metadata["held_out_score"] == "0.2500" and "scores" not in metadata
    assert {"recipe_hash", "seed", "commit", "spec"} <= metadata.keys()
    export("--step", "3")
    assert "held_out_score" not in checkpoint.read(Path("x.safetensors"))[1], "nobody judged it"
    export()
    assert "scores" in checkpoint.read(Path("x.safetensors"))[1], "those of the final student"


def test_an_export_does_not_take_the_place_of_the_student(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "student.safetensors").read_bytes()
    assert vidalign("export", "--run", "run", "--out", "run/student.safetensors", "--dtype", "bfloat16") == 2
    assert "is the student itself" in capsys.readouterr().err
    assert (run / "student.safetensors").read_bytes() == before


def test_evaluate_writes_beside_the_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (run / name).read_bytes() for name in ("evaluation.json", "report.html")}
    assert vidalign("evaluate", "--run", "run", "--step", "1") == 0
    assert "report: run/report-step-1.html" in capsys.readouterr().out
    assert vidalign("evaluate", "--run", "run", "--best") == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    values: dict[int, Any] = {}
    for step in (1, 2):
        document = json.loads((run / f"evaluation-step-{step}.json").read_text())
        assert document["header"]["step"] == str(step)
        values[step] = document["values"]["after"]
        assert f"evaluate --run run --step {step}" in (run / f"report-step-{step}.html").read_text()
    assert values[1] != values[2]
    export("--step", "1")
    scores = json.loads(checkpoint.read(Path("x.safetensors"))[1]["scores"])
    name = "world_auditor/composite"
    assert scores[name] == pytest.approx(sum(values[1][name]) / len(values[1][name]), abs=1e-4)


def test_sample(run: Path) -> None:
    clips = []
    for arguments in ((), ("--step", "3"), ("--best",), ("--step", "2")):
        assert vidalign("sample", "--run", "run", *PROMPT, *arguments) == 0
        clips.append(Path("x.gif").read_bytes())
    assert clips[0] == clips[1] != clips[2] == clips[3]


def test_a_run_that_was_interrupted_has_students(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "student.safetensors").unlink()
    export("--step", "2")
    capsys.readouterr()
    assert vidalign("export", "--run", "run", "--out", "x.safetensors") == 2
    assert "--best or --step N" in capsys.readouterr().err


COMMANDS = {
    "evaluate": ("evaluate",),
    "sample": ("sample", *PROMPT),
    "export": ("export", "--out", "x.safetensors"),
}
MISTAKES = {
    ("--best", "--step", "2"): "--best and --step name two students",
    ("--step", "40"): "there is no checkpoint of step 40 - run/checkpoints - it was not kept, see trainer.save_every "
    "and trainer.keep - name one that there is: 3, 2, 1",
    ("--step", "0"): "name one that there is: 1, 2, 3",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_mistakes(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    for words, message in MISTAKES.items():
        assert vidalign(*COMMANDS[command], "--run", "run", *words) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("error:") == 1 and "Traceback" not in told
    for step in (1, 2, 3):
        edit_manifest(run, step, score=None)
    assert vidalign(*COMMANDS[command], "--run", "run", "--best") == 2
    told = capsys.readouterr().err
    assert "no checkpoint carries a held-out score" in told and "trainer.eval_every" in told and "1, 2, 3" in told
    shutil.rmtree(run / "checkpoints")
    assert vidalign(*COMMANDS[command], "--run", "run", "--step", "2") == 2
    assert "name one that there is: there is none" in capsys.readouterr().err
    assert sorted(run.iterdir()) == [path for path in before if path.name != "checkpoints"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_checkpoint_is_not_read(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / "step-00000002" / "student" / "engine.pt"
    file.write_bytes(file.read_bytes()[:-9])
    assert vidalign(*COMMANDS[command], "--run", "run", "--best") == 3
    told = capsys.readouterr().err
    assert "the checkpoint cannot be used" in told and "engine.pt has" in told and told.count("error:") == 1


def test_another_recipe_than_that_of_the_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("evaluate", "--run", "run", ADAPTER, "--step", "2") == 3
    told = capsys.readouterr().err
    assert "the checkpoint belongs to another network or adapter" in told and "Traceback" not in told
