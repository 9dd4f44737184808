"""The page of a benchmark is filled with what the result file says. All numbers here are made up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from vidalign.bench.protocol import text_hash
from vidalign.bench.report import bench_report, write_bench_report
from vidalign.bench.results import Cell, Predicted, ProtocolStamp, Results, Spent, read_results, write_results
from vidalign.report import Metric

BUDGET = "budget: {currency: forwards, amount: 90000}\n"
PROMPTS = [f"prompt {n}" for n in range(10)]
SPLIT = {"held_out": (0, 8), "out_of_domain": (8, 10)}
HELD_OUT, TRAINED = "world_auditor/composite", "world_scorer/composite"
OFFSETS = np.linspace(-0.05, 0.05, 8)
LEVELS = {"base": (0.4, 0.5), "ground_truth": (0.98, 0.99), "sft": (0.5, 0.55), "astrolabe": (0.7, 0.65)}


def cell(row: str, seed: int) -> Cell:
    """Eight held-out prompts spread around the level of the row; of the others only the motion is judged."""
    trained, held_out = (level + 0.01 * seed for level in LEVELS[row])
    trains = row in ("sft", "astrolabe")
    points = [
        {"step": 10 * i, "forwards": 900.0 * i, "seconds": 5.0 * i, TRAINED: 0.4 + i / 10, HELD_OUT: 0.5}
        for i in (0, 1)
    ]
    return Cell(
        row=row,
        kind="objective" if trains else "reference",
        seed=seed,
        recipe=f"world/{row}" if trains else None,
        recipe_hash="abcd" if trains else None,
        commit="123456",
        device="cpu",
        command=f"vidalign bench run demo --objectives {row} --seeds {seed}" if trains else "",
        spent=Spent(900, 100, 0, 5.0 + seed, 700) if trains else Spent(),
        before=Spent(40, 3) if trains else Spent(),
        predicted=Predicted(900, 100, 0) if trains else Predicted(),
        metrics={
            TRAINED: [*(trained + OFFSETS), math.nan, math.nan],
            HELD_OUT: [*(held_out + OFFSETS), math.nan, math.nan],
            "motion/amount": [0.3] * 8 + [0.6, 0.8],
        },
        prompt_split=SPLIT,
        drift={"drift/look": [0.9, 0.8, math.nan]},
        curve=points if trains else [],
        clips=f"demo/{row}-{seed}.npz",
        warnings=["step 3, held_out_falling: the auditor disagrees"] if (row, seed) == ("astrolabe", 1) else [],
    )


def results() -> Results:
    cells = [cell("base", 0), cell("ground_truth", 0)]
    cells += [cell(row, seed) for row in ("sft", "astrolabe") for seed in range(3)]
    cells.append(Cell(row="dopd", kind="objective", seed=0, error="disk full", prompt_split=SPLIT))
    side = {"reward": 0.2, "auditor": 0.3}
    probe = {
        "before": side,
        "after": {"reward": 0.9, "auditor": 0.31},
        "ground_truth": side,
        "excess": 0.7,
        "interval": [0.6, 0.8],
        "separated": True,
        "steps": 60,
    }
    return Results(
        ProtocolStamp("demo", text_hash(BUDGET), BUDGET),
        "beef",
        "vidalign bench run demo",
        {"cpu": "2 cores"},
        PROMPTS,
        cells,
        {
            "perturbations": {row: {"motion/amount": 0.1, HELD_OUT: None} for row in ("ground truth", "blur 1 px")},
            "falls": {"blur 1 px": {"mean": 0.2, "interval": [0.1, 0.3], "separated": True}},
            "hacking_probe": {"motion": probe},
        },
    )


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "demo").mkdir()
    for index, row in enumerate(LEVELS):
        frames = np.full((2, 4, 8, 8, 3), 10 * index, np.uint8)
        np.savez_compressed(tmp_path / "demo" / f"{row}-0.npz", clips=frames)
    return tmp_path


def test_rows_hold_means_seeds_and_costs(clips: Path) -> None:
    report = bench_report(results(), [clips])
    rows = {row.name: row for row in report.rows}
    assert list(rows) == [*LEVELS, "dopd"] and not rows["dopd"].scores
    score = rows["astrolabe"].scores[Metric("world_auditor", "composite")]
    assert score.mean == pytest.approx(0.66) and score.seeds == pytest.approx((0.65, 0.66, 0.67))
    assert score.interval[0] < 0.66 < score.interval[1]
    assert rows["astrolabe"].scores[Metric("motion, out_of_domain", "amount")].mean == pytest.approx(0.7)
    assert Metric("world_auditor, out_of_domain", "composite") not in rows["astrolabe"].scores  # was not judged
    assert rows["sft"].scores[Metric("cost", "seconds", higher_is_better=False)].seeds == (5.0, 6.0, 7.0)
    assert not any(metric.judge == "cost" for metric in rows["base"].scores)
    assert {name: row.group for name, row in rows.items()} == {
        "base": "references",
        "ground_truth": "references",
        "sft": "methods",
        "astrolabe": "methods",
        "dopd": "methods",
    }
    assert rows["astrolabe"].columns == {
        "learns from": "rewards",
        "paper, arXiv": "2603.17051",
        "steps": "10",
        "cost, forwards": "900",
        "cost, responses": "",
        "cost, calls": "100",
        "wall time": "6 s",
    }
    assert rows["astrolabe"].baseline == "base" and rows["sft"].columns["learns from"] == "teacher's clips"
    assert rows["sft"].facts["seeds"] == "0, 1, 2" and rows["sft"].facts["recipe"] == "world/sft"


def test_pairs_are_against_the_base_and_among_objectives(clips: Path) -> None:
    report = bench_report(results(), [clips])
    assert "shown with probability 0.8: world_auditor: composite 0.0" in report.note
    assert [pair.title for pair in report.pairs] == [
        "astrolabe against base",  # the best row against the best baseline
        "sft against base",
        "ground_truth against base",
        "astrolabe against sft",
    ]
    assert report.result == (
        "2 of 2 trained rows gain over the start weights on world auditor: composite, 0 lose; most gains astrolabe, "
        "+0.160 (95 % interval +0.135 to +0.185)."
    )
    named = results()
    named.baselines = {"astrolabe": "sft"}
    assert bench_report(named, [clips]).pairs[0].title == "astrolabe against sft"
    (row,) = [row for row in report.pairs[3].metrics if (row.group, row.metric) == ("world_auditor", "composite")]
    assert (row.before, row.after, row.difference) == pytest.approx((0.56, 0.66, 0.1))
    assert row.interval == pytest.approx((0.1, 0.1)) and row.verdict == "better"  # equal in all prompts and seeds
    assert row.goal is None, "the gap is that of the base student"
    (row,) = [row for row in report.pairs[0].metrics if (row.group, row.metric) == ("world_auditor", "composite")]
    assert row.goal == pytest.approx(0.99) and row.gap_closed == pytest.approx(0.16 / 0.49)
    (moving,) = [row for row in report.pairs[0].metrics if (row.group, row.metric) == ("motion", "amount")]
    assert moving.gap_closed is None, "the base student moves as much as the world"


def test_curves_drift_and_the_hacking_plot_have_a_line_a_row(clips: Path) -> None:
    report = bench_report(results(), [clips])
    assert [(chart.group, chart.title) for chart in report.curves] == [
        ("world_auditor", "composite"),
        ("world_scorer", "composite"),
    ]
    traces = report.curves[1].traces
    assert [trace.label for trace in traces] == ["sft", "astrolabe"] and traces[0].y == pytest.approx([0.4, 0.5])
    assert traces[0].band == ([0.4, 0.5], [0.4, 0.5])  # of seeds that are alike
    assert traces[0].x == {"step": [0, 10], "forwards": [0, 900], "seconds": [0, 5]}
    apart = results()
    for n, one in enumerate(one for one in apart.cells if one.row == "sft"):
        one.curve = [{**point, TRAINED: 0.1 * n, "step": point["step"] + n} for point in one.curve][: 2 if n else 1]
    trace = bench_report(apart, [clips]).curves[1].traces[0]
    assert trace.y == pytest.approx([0.1, 0.15]) and trace.x["step"] == pytest.approx([1, 11.5])  # seed 0 ended early
    assert trace.band == (pytest.approx([0.0, 0.1]), pytest.approx([0.2, 0.2]))
    of_calls = results()
    of_calls.protocol.text = "budget: {currency: calls, amount: 10}"
    for one in of_calls.cells:
        one.curve = [{**point, "reward_calls": 2.0, "teacher_calls": 1.0, "responses": 0.0} for point in one.curve]
    first = bench_report(of_calls, [clips]).curves[1].traces[0]
    assert list(first.x) == ["calls", "step", "forwards", "seconds"], "the budget's currency is shown"
    assert first.x["calls"] == [3.0, 3.0]
    assert report.hacking is not None and len(report.hacking.paths) == 2
    assert report.hacking.paths[0].trained == pytest.approx([0.4, 0.5])
    assert report.hacking.paths[0].held_out == pytest.approx([0.5, 0.5])
    (drift,) = report.drift
    assert drift.title == "drift: look" and len(drift.traces) == 4 and drift.traces[0].x == {"chunk": [1, 2, 3]}


def test_clips_of_all_rows_stand_side_by_side(clips: Path) -> None:
    report = bench_report(results(), [clips])
    assert [shown.prompt for shown in report.prompts] == PROMPTS[:2]
    assert [(pane.row, pane.frames[0, 0, 0, 0]) for pane in report.prompts[1].panes] == [
        ("base", 0),
        ("ground_truth", 10),
        ("sft", 20),
        ("astrolabe", 30),
    ]
    assert report.prompts[1].panes[3].scores["held-out"] == pytest.approx(0.65 + OFFSETS[1])
    (clips / "demo" / "sft-0.npz").write_bytes(b"no archive")
    (clips / "demo" / "base-0.npz").unlink()
    (clips / "demo" / "ground_truth-0.npz").unlink()
    report = bench_report(results(), [clips])
    assert [pane.row for pane in report.prompts[0].panes] == ["astrolabe"]
    (gone,) = [one for one in report.warnings if "there are no clips" in one.message]
    assert gone.message == "there are no clips of base, ground truth" and "runs/bench" in gone.fix
    (broken,) = [one for one in report.warnings if "cannot be read" in one.message]
    assert broken.cell == "sft"


def test_clips_come_from_the_first_folder_that_has_them(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "demo").mkdir(parents=True)
    np.savez_compressed(tmp_path / "other" / "demo" / "sft-0.npz", clips=np.full((2, 4, 8, 8, 3), 99, np.uint8))
    for folders, level in (([tmp_path / "other", clips], 99), ([clips, tmp_path / "other"], 20)):
        panes = {pane.row: pane.frames[0, 0, 0, 0] for pane in bench_report(results(), folders).prompts[0].panes}
        assert panes == {"base": 0, "ground_truth": 10, "sft": level, "astrolabe": 30}


def test_shipped_clips_stand_beside_their_results() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    report = bench_report(read_results(folder / "quickstart.json"), [folder / "clips"])
    rows = ["base", "teacher", "ground_truth", "astrolabe", "astrolabe_fp32"]
    assert len(report.prompts) == 6 and [pane.row for pane in report.prompts[0].panes] == rows
    assert not any("clips" in one.message for one in report.warnings)


def test_health_says_what_failed_what_warned_and_what_was_spent(clips: Path) -> None:
    report = bench_report(results(), [clips])
    assert [(w.cell, w.failed, w.message[:9]) for w in report.warnings] == [
        ("dopd, seed 0", True, "disk full"),
        ("astrolabe, seed 1", False, "step 3, h"),
    ]
    cost, perturbations, probe = report.diagnostics
    assert cost.rows[0] == ("sft, seed 0", [900, 900, 100, 100, 0, 0, 40, 3, 0, 5.0, 700])
    assert perturbations.columns == ["separated", "fall", "low", "high", "world_auditor: composite", "motion: amount"]
    (_, truth), (_, blurred) = perturbations.rows
    assert truth[0] == "" and math.isnan(truth[4]) and truth[5] == 0.1  # type: ignore[arg-type]
    assert blurred[:4] == ["yes", 0.2, 0.1, 0.3]
    assert probe.rows[0][1][:4] == [0.2, 0.9, 0.3, 0.31] and probe.rows[0][1][6:] == [0.7, 0.6, 0.8, "yes"]
    assert report.commands[0] == "vidalign bench run demo" and report.commands[-1] == "vidalign bench report demo"
    assert len(report.commands) == 8 and report.summary == "Every objective may spend 90,000 forwards a seed."


def test_a_result_file_becomes_a_page(clips: Path) -> None:
    file = clips / "results.json"
    made = results()
    made.cells = [each.sealed() for each in made.cells]
    write_results(file, made)
    page = write_bench_report(read_results(file), clips / "report.html", [clips]).read_text(encoding="utf-8")
    for part in ("Benchmark demo", "Perturbation table", "Reward-hacking probe", "disk full", "beef", "8 of 9"):
        assert part in page


def test_a_result_without_trained_rows_still_makes_a_page(tmp_path: Path) -> None:
    bare = results()
    bare.cells, bare.health = [cell("ground_truth", 0)], None
    report = bench_report(bare, [tmp_path])
    assert [row.name for row in report.rows] == ["ground_truth"] and not report.pairs and not report.baseline
    assert not report.diagnostics and not report.prompts
    del bare.cells[0].metrics[HELD_OUT]
    assert bench_report(bare, [tmp_path]).headline == Metric("world_scorer", "composite")
    bare.cells = []
    assert "Benchmark demo" in write_bench_report(bare, tmp_path / "report.html", [tmp_path]).read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("place", ["../out.npz", "ABSOLUTE"])
def test_clips_of_a_result_file_stay_in_their_folder(place: str, clips: Path) -> None:
    found, inner = results(), clips / "inner"
    (clips / "out.npz").write_bytes((clips / "demo" / "sft-0.npz").read_bytes())
    for cell in found.cells:
        cell.clips = str(clips / "out.npz") if place == "ABSOLUTE" else place
    inner.mkdir()
    report = bench_report(found, [inner])
    assert report.prompts == [] and "leads out of the folder" in report.warnings[-1].message
