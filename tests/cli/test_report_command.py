"""`vidalign report`: the page of a run, or of several, made anew from files, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import vidalign

from vidalign.evaluation.comparison import read_evaluation


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run")
    return Path("run")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard error of a command that ends with 2."""
    capsys.readouterr()
    assert vidalign("report", *arguments) == 2
    return " ".join(capsys.readouterr().err.split())


def test_the_page_is_made_again_without_the_student(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (run / "report.html").read_bytes()
    assert len(page) < 600_000
    for path in (run / "report.html", run / "student.safetensors"):
        path.unlink()
    shutil.rmtree(run / "checkpoints")
    assert vidalign("report", "run") == 0
    assert "report: run/report.html" in capsys.readouterr().out
    assert (run / "report.html").read_bytes() == page


def test_no_model_and_no_judge_is_imported(run: Path) -> None:
    code = (
        "import sys; from vidalign.workflows.report import report_runs; report_runs(['run']); "
        "print([m for m in sys.modules if m.startswith(('transformers', 'diffusers', 'vidalign.worlds', "
        "'vidalign.students.video.network'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_first_lines_say_what_came_out(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    judged = read_evaluation(run / "evaluation.json").judged
    before, after = (judged[name].metrics["world_auditor", "composite"].mean().item() for name in ("before", "after"))
    sentence = page.partition('<p class="result">')[2].partition("</p>")[0]
    assert f"{after - before:+.3f} on the held-out world auditor" in sentence and sentence.endswith("seed 0.")
    assert "thread" in sentence and " s on " in sentence
    header = page.partition('<dl class="facts">')[2].partition("</dl>")[0]
    assert "<dt>date</dt><dd>20" in header and "UTC" in header and "<dt>wall time</dt><dd>" in header


def test_the_kept_clips_are_small_and_labelled(run: Path) -> None:
    kept = json.loads((run / "evaluation-clips.json").read_text(encoding="utf-8"))
    assert (run / "evaluation-clips.json").stat().st_size < 200_000
    assert [shown["label"] for shown in kept["prompts"]] in (["best", "worst"], ["worst", "best"])
    sizes = [abs(shown["change"]) for shown in kept["prompts"]]
    assert sizes == sorted(sizes, reverse=True)
    for shown in kept["prompts"]:
        first, second, truth = shown["panes"]
        assert [first["row"], second["row"], truth["row"]] == ["before", "after", "ground truth"]
        assert second["scores"]["world_auditor"] - first["scores"]["world_auditor"] == pytest.approx(shown["change"])


def test_several_runs_stand_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("run", "other")
    log = Path("other/metrics.jsonl")
    log.write_text(log.read_text(encoding="utf-8").replace('"seed": "0"', '"seed": "7"'), encoding="utf-8")
    assert vidalign("report", "run", "other") == 0
    assert "report: report.html" in capsys.readouterr().out
    page = Path("report.html").read_text(encoding="utf-8")
    assert "2 runs side by side" in page and "seed 0." in page and "seed 7." in page
    assert page.count('<p class="result">') == 2 and "the same for all runs" in page
    assert '<th scope="rowgroup" colspan="6">world auditor: composite</th>' in page
    assert page.count('alt="other: ') == 2 and page.count('alt="before: ') == 2  # both started from one student
    assert 'data-row="run"' in page and 'data-row="other"' in page
    assert '<input type="checkbox" checked value="other">' in page  # says whose colour it is
    assert vidalign("report", "run", "other", "--out", "pages/both.html") == 0
    assert Path("pages/both.html").read_text(encoding="utf-8") == page


def test_runs_of_one_name_are_named_with_their_folders(run: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree("run", Path(name, "run"))
    assert vidalign("report", "a/run", "b/run") == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "a/run: " in page and "b/run: " in page


def test_a_run_of_an_earlier_version_says_what_it_lacks(run: Path) -> None:
    (run / "evaluation-clips.json").unlink()
    document = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    kept = {name: document[name] for name in ("header", "prompts", "values")}
    (run / "evaluation.json").write_text(json.dumps(kept), encoding="utf-8")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    header = {name: value for name, value in json.loads(lines[0]).items() if name != "time"}
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n", encoding="utf-8")
    assert vidalign("report", "run") == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "this run kept no clips" in page and "`vidalign evaluate --run run` judges it" in page
    assert "not recorded" in page and "on the held-out world auditor" in page and "<img" not in page


def test_a_run_that_was_not_judged_shows_its_curves(run: Path) -> None:
    (run / "evaluation.json").unlink()
    assert vidalign("report", "run") == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Not judged; " in page and "this run has no judgement" in page and '<svg class="plot"' in page


def test_a_judged_step_keeps_its_own_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evaluation.json", "evaluation-clips.json"):
        shutil.copy(run / name, run / name.replace(".json", "-step-1.json"))
    assert vidalign("report", "run") == 0
    assert "report: run/report-step-1.html" in capsys.readouterr().out
    assert "<dt>student of step</dt><dd>1</dd>" in (run / "report-step-1.html").read_text(encoding="utf-8")


def test_what_is_no_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no run 'runn' - RUN - there is no such folder - did you mean 'run'?" in refused(capsys, "runn")
    assert "is not a run - RUN - it holds no recipe.yaml and no metrics.jsonl - name a run in it, such as 'run'" in (
        refused(capsys, ".")
    )
    assert "it is not a folder" in refused(capsys, "run/recipe.yaml")
    assert "the run 'run' is named twice" in refused(capsys, "run", "./run")
    assert "Missing argument 'RUN...'" in refused(capsys)
    before = (run / "report.html").stat().st_mtime_ns
    refused(capsys, "run", "nothing")
    assert (run / "report.html").stat().st_mtime_ns == before and not Path("report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("evaluation.json", "[]", "the evaluation of the run cannot be read"),
        (
            "evaluation.json",
            '{"header": {}, "prompts": ["a"], "values": {"before": {}}}',
            "the entry 'after' is missing",
        ),
        (
            "evaluation.json",
            '{"header": {}, "prompts": ["a"], "values": {"before": {"a/b": []}, "after": {}}}',
            "'a/b' has 0 values for 1 prompts",
        ),
        ("evaluation-clips.json", '{"fps": 8}', "the entry 'prompts' is missing"),
        ("evaluation-clips.json", "{", "the clips of the run cannot be read - run/evaluation-clips.json"),
        ("metrics.jsonl", "[1]\n", "the log of the run cannot be read"),
        ("recipe.yaml", "a: [", "the recipe of the run cannot be read"),
    ],
)
def test_a_damaged_file_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, what: str
) -> None:
    (run / file).write_text(content, encoding="utf-8")
    assert vidalign("report", "run") == 3
    assert what in " ".join(capsys.readouterr().err.split())
