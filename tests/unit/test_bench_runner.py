"""Running cells side by side: failures are named and isolated, finished cells are kept, Ctrl-C leaves nothing behind.

The cells here are a short program that behaves as its row says.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from bench_helpers import PROTOCOL, make_cell, make_folder

from vidalign.bench import runner
from vidalign.bench.protocol import load_protocol
from vidalign.bench.results import Cell, read_results, write_json
from vidalign.bench.runner import BenchRun
from vidalign.errors import DataError, Interrupted, RecipeError, UserError

ROWS = ("good", "full", "crash", "killed", "slow")
FAKE = """\
import os, signal, sys, time
from pathlib import Path
row, seed = sys.argv[sys.argv.index("--row") + 1], sys.argv[sys.argv.index("--seed") + 1]
log = open("log.txt", "a"); log.write(f"{row}-{seed} {os.environ['OMP_NUM_THREADS']}\\n"); log.close()
if row == "full":
    print("noise\\ncell failed: x.pt: No space left on device", file=sys.stderr); sys.exit(3)
if row == "crash":
    print("Traceback ...\\nValueError: odd", file=sys.stderr); sys.exit(1)
if row == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if row == "slow":
    time.sleep(60)
Path(f"runs/bench/p/{row}-{seed}.json").write_text(Path("finished.json").read_text().replace("ROW", row))
"""


def read(file: Path, protocol: object) -> Cell:
    row, _, seed = file.stem.rpartition("-")
    return make_cell(row, int(seed), [0.5] * 5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    rows = "".join(f"  {row}: {{recipe: recipe.yaml}}\n" for row in ROWS)
    text = PROTOCOL.replace("  astrolabe: {recipe: recipe.yaml}\n", rows)
    (tmp_path / "p.yaml").write_text(text)
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(runner, "CELL", (sys.executable, "fake.py"))
    monkeypatch.setattr(runner, "read_finished", read)
    (tmp_path / "finished.json").write_text("{}")
    return tmp_path


def run(objectives: str, jobs: int = 2, seeds: list[int] | None = None) -> BenchRun:
    return BenchRun("p.yaml", objectives=objectives.split(","), seeds=seeds, jobs=jobs, say=lambda text: None)


def started() -> list[str]:
    return [line.split()[0] for line in Path("log.txt").read_text().splitlines()]


def test_failures_are_named_and_the_others_go_on(folder: Path) -> None:
    bench = run("full,crash,killed,good")
    results = bench.run()
    assert results.row_names() == ["base", "ground_truth", "good", "full", "crash", "killed"]
    errors = {cell.row: cell.error for cell in results.cells if cell.error}
    assert errors == {
        "full": "x.pt: No space left on device",
        "crash": "ended with exit code 1: Traceback ... ValueError: odd",
        "killed": "killed by signal SIGKILL",
    }
    assert {cell.row for cell in read_results(bench.folder / "results.json").cells if cell.error} == set(errors)
    assert sorted(started()) == ["base-0", "crash-0", "full-0", "good-0", "ground_truth-0", "killed-0"]
    assert all(line.endswith(" 1") for line in Path("log.txt").read_text().splitlines()), "one thread"


def test_a_row_without_a_recipe_fails_before_any_cell(folder: Path) -> None:
    text = Path("p.yaml").read_text()
    Path("p.yaml").write_text(text.replace("  crash: {recipe: recipe.yaml}", "  crash: {recipe: recipes.yaml}"))
    said: list[str] = []
    results = BenchRun("p.yaml", objectives=["crash", "good"], jobs=1, say=said.append).run()
    assert "crash, seed 0: FAILED: " in said[0] and "recipes.yaml" in said[0] and ": 3 cells to run" in said[1]
    assert started() == ["base-0", "ground_truth-0", "good-0"]
    assert [cell.row for cell in results.cells if cell.error] == ["crash"]


def test_only_what_is_left_is_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("good,crash").run()
    assert capsys.readouterr().out.splitlines() == ["cells: 4/4"]
    Path("log.txt").unlink()
    results = run("good,crash", seeds=[0, 4]).run()
    assert sorted(started()) == ["crash-0", "crash-4", "good-4"]
    assert [(cell.row, cell.seed) for cell in results.cells if cell.row == "good"] == [("good", 0), ("good", 4)]
    command = next(cell.command for cell in results.cells if (cell.row, cell.seed) == ("good", 4))
    assert command == "vidalign bench run p.yaml --objectives good --seeds 4"


def test_ctrl_c_stops_every_cell_and_keeps_what_is_finished(folder: Path) -> None:
    def interrupt() -> None:
        while not Path("log.txt").is_file() or "slow-1" not in started():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    bench = run("good,slow", jobs=2, seeds=[1])
    threading.Thread(target=interrupt).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted, match="1 cells are not finished.*--objectives good,slow --seeds 1"):
        bench.run()
    assert time.monotonic() - begun < 30
    assert all(process.poll() is not None for process in bench.processes)
    results = read_results(bench.folder / "results.json")
    assert results.row_names() == ["base", "ground_truth", "good"] and not any(cell.error for cell in results.cells)


def test_an_edited_cell_is_named_and_the_others_are_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path, protocol: object) -> Cell:
        if file.stem == "good-0":
            raise DataError("the cell 'good, seed 0' was changed after it was measured")
        return read(file, protocol)

    monkeypatch.setattr(runner, "read_finished", refuse)
    bench = run("good", seeds=[0, 1])
    (bench.folder).mkdir(parents=True)
    (bench.folder / "health.json").write_text("{")
    results = bench.run()
    errors = {(cell.row, cell.seed): cell.error for cell in results.cells if cell.error}
    assert set(errors) == set(bench.errors) == {("good", 0), ("health", 0)} and results.health is None
    assert "was changed after" in str(errors["good", 0]) and "cannot read a finished cell" in str(errors["health", 0])
    assert [cell.seed for cell in read_results(bench.folder / "results.json").of_row("good")] == [1]


def test_a_folder_of_another_protocol_is_refused(folder: Path) -> None:
    run("good").run()
    (folder / "p.yaml").write_text((folder / "p.yaml").read_text().replace("amount: 130", "amount: 140"))
    with pytest.raises(UserError, match=r"cells of another protocol.*budget.amount: 140.0, not 130.0"):
        run("good").run()


def test_a_finished_cell_of_another_recipe_is_named(folder: Path) -> None:
    run("good").run()
    (folder / "runs/bench/p/good-0").mkdir()
    (folder / "runs/bench/p/good-0/recipe.yaml").write_text("seed: 5\n")
    results = run("good").run()
    (error,) = [cell.error for cell in results.cells if cell.row == "good"]
    assert error is not None and "begun with another recipe" in error


def test_unknown_rows(folder: Path) -> None:
    with pytest.raises(RecipeError, match="no row 'god' in p.*did you mean 'good'"):
        run("god")


def test_finished_cells_are_checked_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    protocol, cell = load_protocol("p.yaml"), vars(make_cell("a", 0, [0.5]))
    plain = {**cell, **{name: vars(cell[name]) for name in ("spent", "before", "predicted")}}
    file = write_json(tmp_path / "a-0.json", {"protocol": protocol.conditions, "cell": plain})
    assert runner.read_finished(file, protocol).metrics == {"m/x": [0.5]}
    write_json(file, {"protocol": "other", "cell": plain})
    with pytest.raises(DataError, match="belongs to another protocol"):
        runner.read_finished(file, protocol)
    write_json(file, {"protocol": protocol.conditions, "cell": {**plain, "seed": 3}})
    with pytest.raises(DataError, match="was changed after it was measured"):
        runner.read_finished(file, protocol)
    write_json(file, {"protocol": protocol.conditions, "cell": {"row": "a"}})
    with pytest.raises(DataError, match="cannot read a finished cell.*digest"):
        runner.read_finished(file, protocol)
    file.write_text(json.dumps({})[:1])
    with pytest.raises(DataError, match="cannot read a finished cell"):
        runner.read_finished(file, protocol)


def test_every_cell_has_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in runner.devices(None)] == ["5", "7"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in runner.devices(3)] == ["5", "7", "5"]
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: 0)
    assert runner.devices(3) == [{"OMP_NUM_THREADS": "1"}] * 3
