"""`vidalign bench export-videos`: a student of a run or of a recipe, mistakes, Ctrl-C."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from run_helpers import vidalign

from vidalign.bench.suites import export
from vidalign.worlds.video import captions

PROMPTS = list(captions.prompts("basic/unseen"))[:2]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "all_dimension.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    return file


def names(out: Path) -> set[str]:
    return {file.name for file in (out / "videos").iterdir()}


def made_by(out: Path) -> tuple[str, str]:
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return manifest["made_by"]["recipe"], manifest["settings"]["student"]["sha256"]


def test_students_of_a_run_and_of_its_recipe(
    finished: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, start = tmp_path / "trained", tmp_path / "start"
    common = ("bench", "export-videos", "vbench", "--prompts", str(prompts), "--seeds", "2")
    assert vidalign(*common, "--run", str(finished / "run"), "--out", str(trained)) == 0
    assert capsys.readouterr().out.strip() == str(trained)
    assert vidalign(*common, "--recipe", str(finished / "recipe.yaml"), "--out", str(start)) == 0
    assert names(trained) == names(start) == {f"{prompt}-{i}.mp4" for prompt in PROMPTS for i in (0, 1)}
    assert made_by(trained)[0] == made_by(start)[0] == "recipe.yaml"
    assert made_by(trained)[1] != made_by(start)[1], "training changed the student"
    assert vidalign(*common, "--recipe", str(finished / "recipe.yaml"), "--out", str(trained)) == 3
    assert "student.sha256 was" in capsys.readouterr().err


def test_scores_come_back_into_the_report(
    finished: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, file = tmp_path / "run", tmp_path / "out", tmp_path / "x_eval_results.json"
    shutil.copytree(finished / "run", run)
    command = ("bench", "export-videos", "vbench", "--prompts", str(prompts), "--seeds", "1")
    assert vidalign(*command, "--run", str(run), "--out", str(out)) == 0
    scored = [{"video_path": f"videos/{prompt}-0.mp4", "video_results": 0.5} for prompt in PROMPTS]
    file.write_text(json.dumps({"scene": [0.5, scored]}), encoding="utf-8")
    read = ("bench", "import-scores", "vbench", str(file), "--videos", str(out))
    assert vidalign(*read) == 2 and "--version" in capsys.readouterr().err
    assert vidalign(*read, "--version", "0.1.5") == 0
    assert capsys.readouterr().out.split() == [str(out / "scores.json"), str(run / "scores" / "vbench.json")]
    assert "External suites" not in (run / "report.html").read_text(encoding="utf-8")
    assert vidalign("evaluate", "--run", str(run)) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    table = page[page.index('<h2 id="h-suites">External suites</h2>') :].split("</table>")[0]
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", table)
    assert cells[1:7] == ["version", "dimension", "value", "videos", "date", "student"]
    assert cells[7:12] == ["vbench", "0.1.5", "scene", "0.500", "2"] and cells[13:] == ["this one"]
    file.write_text(json.dumps({"scene": [0.5, scored[:1] * 2]}), encoding="utf-8")
    assert vidalign(*read, "--version", "0.1.5") == 2
    assert "1 scored twice" in capsys.readouterr().err


def test_mistakes(finished: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ("bench", "export-videos", "vbench", "--prompts", str(prompts), "--out", str(out))
    run = ("--run", str(finished / "run"))
    assert vidalign(*command) == vidalign(*command, *run, "--recipe", "world/astrolabe") == 2
    assert "give one of --run and --recipe" in capsys.readouterr().err
    for wrong, code, told in (
        (("--fps", "0"), 2, "fps must be positive"),
        (("--frames", "4"), 3, "a video of 4 frames is not whole chunks"),
        (("--prompts", str(tmp_path / "gone.txt")), 2, "the prompt file cannot be read"),
        (("--run", str(tmp_path)), 2, "is not a finished run"),
    ):
        assert vidalign(*command, *run, *wrong) == code
        assert told in capsys.readouterr().err
    assert vidalign("bench", "export-videos", "vbnch", *command[3:], *run) == 2
    assert "did you mean 'vbench'?" in capsys.readouterr().err
    assert not out.exists()


def test_interrupted(
    finished: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object) -> bytes:
        raise KeyboardInterrupt

    command = ("bench", "export-videos", "vbench", "--prompts", str(prompts), "--run", str(finished / "run"), "--out")
    with monkeypatch.context() as patched:
        patched.setattr(export, "mp4_bytes", stop)
        assert vidalign(*command, str(tmp_path / "out")) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert vidalign(*command, str(tmp_path / "out"), "--seeds", "5") == 0 and len(names(tmp_path / "out")) == 10
