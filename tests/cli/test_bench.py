"""`vidalign bench`: run a protocol on a tiny student, go on after a stop, compare rows; mistakes are reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from run_helpers import vidalign

from vidalign import provenance
from vidalign.bench import cell, runner
from vidalign.bench.results import read_results
from vidalign.errors import UserError
from vidalign.owner import LOCK, owned
from vidalign.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from bench_helpers import make_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A protocol, and cells that run in this process: starting one takes longer than its work here."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    (tmp_path / "teacher.safetensors").write_bytes((tmp_path / "student.safetensors").read_bytes())
    text = (tmp_path / "p.yaml").read_text() + "teacher: {path: teacher.safetensors, steps: 2}\n"
    sft = "{recipe: recipe.yaml, overrides: ['objective={name: sft}', '~rewards.text_alignment', teacher.name=world]}"
    (tmp_path / "p.yaml").write_text(text.replace("objectives:\n", f"objectives:\n  sft: {sft}\n"))

    def in_process(self: runner.BenchRun, job: runner.Job, slot: dict[str, str]) -> str:
        try:
            cell.run(self.protocol, *job)
        except UserError as error:
            return str(error)
        return ""

    monkeypatch.setattr(runner.BenchRun, "_wait", in_process)
    return tmp_path


def test_run_resume_and_compare(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain_step = Trainer.train_step

    def stopped(self: Trainer) -> dict[str, float]:
        if self.recipe.objective.name == "astrolabe" and self.step == 1:
            raise KeyboardInterrupt
        return plain_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        assert vidalign("bench", "run", "p.yaml", "--jobs", "1") == 130
    assert "1 cells are not finished" in capsys.readouterr().err
    assert (folder / "runs/bench/p/astrolabe-0/checkpoints/step-00000001").is_dir()
    steps: list[str] = []
    monkeypatch.setattr(
        Trainer,
        "train_step",
        lambda self: (steps.append(f"{self.recipe.objective.name} {self.step}"), plain_step(self))[1],
    )
    assert vidalign("bench", "run", "p.yaml", "--jobs", "1", "--out", "out.json") == 0
    results = read_results("out.json")
    assert steps == [f"astrolabe {n}" for n in range(1, len(steps) + 1)], "the finished cell is not run again"
    assert results.row_names() == ["base", "teacher", "ground_truth", "sft", "astrolabe"] and results.health is None
    for found in results.cells:
        assert found.error is None and len(found.metrics["world_scorer/composite"]) == 5
        assert len(found.drift.get("drift/visual", [])) == (0 if found.row == "teacher" else 4)
        assert np.load(f"runs/bench/{found.clips}")["clips"].shape == (2, 6, 32, 32, 3)
        for name in ("forwards", "reward_calls", "teacher_calls"):
            assert getattr(found.spent, name) == pytest.approx(getattr(found.predicted, name), rel=0.01)
        if found.kind == "objective":
            assert 90 < found.spent.forwards <= 130 and found.spent.seconds > 0
            assert [point["forwards"] for point in found.curve][-1] == found.spent.forwards
            assert "world_scorer/composite" in found.curve[0] and found.recipe_hash
            assert found.recipe is not None and found.recipe.startswith("recipe.yaml")  # with its changes
    capsys.readouterr()
    assert vidalign("bench", "compare", "p:base", "ground_truth") == 0
    assert "better" in capsys.readouterr().out
    assert vidalign("bench", "compare", "p:base", "sfd") == 2
    assert "did you mean 'sft'" in capsys.readouterr().err
    document = json.loads(Path("out.json").read_text())
    document["cells"][0]["metrics"]["world_scorer/composite"][0] = 1.0
    Path("out.json").write_text(json.dumps(document))
    assert vidalign("bench", "compare", "out.json:base", "sft") == 2
    assert "was changed after it was measured" in capsys.readouterr().err


def test_rows_are_tuned_and_the_overrides_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = (
        "tuning={prompts: {source: world:basic/train, count: 2}, trials: 3, widen: 0, metric: world_scorer/composite}"
    )
    words = ["bench", "tune", "p.yaml", section, "--rows", "sft", "--jobs", "1"]
    assert vidalign(*words, "--out", "tuned.json") == 0
    told = capsys.readouterr().out
    (row,) = json.loads(Path("tuned.json").read_text())["rows"]
    scores = [trial["score"] for trial in row["trials"]]
    assert len(set(scores)) == 3 and row["best"] == row["trials"][scores.index(max(scores))]["settings"]
    expected = f"overrides: [{row['overrides'][0]}]" if row["overrides"] else "its own settings are the best"
    assert f"sft: {expected}" in told and "result: tuned.json" in told
    assert vidalign(*words) == 0 and ": 0 cells to run" in capsys.readouterr().out, "finished trials are kept"
    assert vidalign("bench", "tune", "p.yaml") == 2
    assert "p has no section tuning" in capsys.readouterr().err


def test_a_full_disk_fails_one_cell(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "reference_jobs", lambda protocol: [])

    def full(path: Path, data: object) -> None:
        raise UserError(f"cannot write {path.name}", why="No space left on device")

    monkeypatch.setattr(cell, "write_json", full)
    assert vidalign("bench", "run", "p.yaml", "budget.amount=40", "--objectives", "sft", "--jobs", "1") == 3
    told = capsys.readouterr()
    assert "sft, seed 0: FAILED: cannot write sft-0.json - No space left on device" in told.out
    assert "1 cells failed" in told.err and "bench run p.yaml budget.amount=40 --objectives sft" in told.err


def test_mistakes_before_anything_starts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("bench", "run", "p.yaml", "metrics={worldscorer: {}}") == 2
    assert "did you mean 'world_scorer'" in capsys.readouterr().err
    assert vidalign("bench", "run", "p.yaml", "--objectives", "stf") == 2
    assert "did you mean 'sft'" in capsys.readouterr().err
    assert vidalign("bench", "run", "p.yaml", "--seeds", "a") == 2
    assert vidalign("bench", "compare", "sft", "base") == 2
    assert "RESULT:ROW" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_one_process_at_a_cell(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cell", "p.yaml", "--row", "base", "--seed", "0"])
    cells = cell.load_protocol("p.yaml").folder
    with owned(cells, f".base-0{LOCK}"), pytest.raises(SystemExit) as left:
        cell.main()
    assert left.value.code == 2 and "another command works in" in capsys.readouterr().err


def test_the_program_of_a_cell_tells_why_it_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line on stderr is what the runner shows."""
    for arguments, why in [
        (["p.yaml", "--row", "sft", "--seed", "0", "budget.amount=1"], "does not pay for one step"),
        (["nothing", "--row", "sft"], "there is no protocol 'nothing'"),
    ]:
        monkeypatch.setattr(sys, "argv", ["cell", *arguments])
        with pytest.raises(SystemExit) as leaving:
            cell.main()
        last = capsys.readouterr().err.splitlines()[-1]
        assert leaving.value.code == 3 and last.startswith(cell.MARK) and why in last


def test_protocols_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("list", "protocols") == 0
    assert "quickstart" in capsys.readouterr().out
    assert vidalign("list", "metrics") == 0
    assert "world_auditor" in capsys.readouterr().out


def test_published_results_come_from_clean_checkouts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(provenance, "commit", lambda: "abc+changes")
    published = Path(provenance.__file__).parents[1] / "benchmarks" / "results" / "new.json"
    assert vidalign("bench", "run", "quickstart", "--small", "--out", str(published)) == 2
    assert "published results are measured from a clean checkout" in capsys.readouterr().err and not published.exists()
