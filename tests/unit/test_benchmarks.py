"""The tables that people read are the numbers that were measured."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import make_cell, make_results

from vidalign.bench.protocol import load_protocol
from vidalign.bench.shipped import shipped_protocols

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # its scripts import each other, as they do when they are run


def test_the_page_is_generated_from_the_results() -> None:
    tables = runpy.run_path(str(BENCHMARKS / "tables.py"))
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == tables["render"](), "run benchmarks/tables.py"
    assert tables["PAGE"].read_text(encoding="utf-8") == tables["tuning_page"](), "run benchmarks/tables.py"


def test_a_benchmark_is_shown_with_intervals_and_claims() -> None:
    tables = runpy.run_path(str(BENCHMARKS / "tables.py"))
    auditor = "world_auditor/composite"
    cells = [
        make_cell("base", 0, 3 * [0.2, 0.3, 0.4], "reference", auditor),
        make_cell("sft", 0, 3 * [0.3, 0.4, 0.5], metric=auditor),
        make_cell("sft", 1, 3 * [0.3, 0.4, 0.5], metric=auditor),
        make_cell("odd", 0, 3 * [0.1, 0.3, 0.6], metric=auditor),
        make_cell("ground_truth", 0, 3 * [0.7, 0.8, 0.9], "reference", auditor),
    ]
    cells[1].spent.forwards, cells[2].spent.forwards = 100.0, 200.0
    results = make_results(cells)
    results.machine = {"description": "2 cores"}
    fall = {"mean": 0.2, "interval": [-0.1, 0.3], "separated": False}
    perturbations = {"blur 1 px": {"world_auditor/composite": 0.8, "world_auditor/pass": 0.25}}
    results.health = {"falls": {"blur 1 px": fall}, "hacking_probe": {}, "perturbations": perturbations}
    page = tables["bench"](results)
    assert "| ground_truth | auditor | +0.500 | +0.500 .. +0.500 | 0.000 | better |  |" in page
    assert "| blur 1 px | 0.200 (-0.100 .. 0.300) | 0.250 | no |" in page
    assert "| base | 0.300 (0.233 .. 0.367) |" in page  # 2.306 standard errors of 9 prompts
    assert "| sft | auditor | +0.100 | +0.100 .. +0.100 | 0.000 | better | 20% |" in page
    assert re.search(r"\| odd \| auditor \| \+0.033 \| -0.068 .. \+0.135 \| 0.\d+ \| unclear \| 7% \|", page)
    assert "| sft | 150 | 0 |" in page and "`vidalign bench run p`" in page and "training seeds 0, 1" in page


def head_row(loss: str, tokens: int, peak: float, *, extrapolated: bool = False, **more: object) -> dict[str, Any]:
    row = {"loss": loss, "tokens": tokens, "extrapolated": extrapolated, "peak_gib": peak}
    return row | {"seconds": [2.0 * peak, 3.0], "cpu_seconds": [1.0 * peak, 2.0]} | more


def test_losses_behind_the_head_are_shown_beside_the_naive_one_and_trl() -> None:
    result = {
        "command": "python x.py",
        "commit": "abc",
        "machine": "2 cores",
        "cores": 2,
        "load": [1.0, 3.5],
        "versions": {"trl": "1.16.0"},
        "clock": "cpu_seconds",
        "sizes": {"tokens": 64, "paired_tokens": 16, "hidden": 8, "vocabulary": 100, "dtype": "fp32"},
        "rows": [
            head_row("naive", 16, 2.0),
            head_row("naive", 32, 4.0),
            head_row("naive", 64, 8.0, extrapolated=True),
            head_row(
                "projected", 64, 1.0, time_of_trl=[0.7, 0.75, 0.8], time_of_checkpointed=[0.5] * 3, head_gradients=1.5
            ),
            head_row("projected", 16, 1.0),
            head_row("trl", 64, 0.5),
            head_row("routed", 64, 4.0, time_of_trl=[1.2, 1.2, 1.2]),
            head_row("routed", 16, 1.0, time_of_trl=[0.9, 1.0, 1.1]),
        ],
    }
    shown = runpy.run_path(str(BENCHMARKS / "other_tables.py"))["lm_head_memory"]
    page = shown(result)
    assert "| 64 | projected | 1.00 |  | 12% of a line | 2.00 | 1.00 | 0.75 (0.70 .. 0.80) | 2 |" in page
    assert "| 64 | naive (extrapolated) | 8.00 |" in page
    page = " ".join(page.split())
    assert "`naive` was run up to 32 tokens" in page
    assert "8.0 times less peak memory than the extrapolated `naive` (asked: 4, kept), in 0.5 times its time" in page
    assert "2.00 of the peak of TRL's loss and 0.75 of its time (asked: 1, kept; runs: 2)." in page
    assert "2.0 times less peak memory than the extrapolated `naive` (asked: 4, missed)" in page
    assert "1.20 of its time (asked: 1, missed; runs: 2); at 16 tokens 1.00 (0.90 .. 1.10) of its time." in page
    assert "0.50 of `checkpointed`'s time at 64 tokens (asked: 0.55, kept)" in page
    assert "0.75 of TRL's time at 64 tokens (asked: 0.65, missed)" in page
    assert "1.50 head gradients of peak memory at 64 tokens (asked: 1.6, kept)" in page
    assert "0.50 of `naive`'s time at 16 tokens (asked: 1.0, kept)" in page
    result["rows"][3]["time_of_before"] = [0.56] * 3
    assert "0.56 of `before`'s time at 64 tokens (asked: 0.55, missed)" in shown(result)
    assert "vocabulary 100" in page and "`python x.py`" in page and "load of the machine 1.0 to 3.5 on 2" in page


def test_losses_behind_the_head_are_measured_side_by_side() -> None:
    """Small, and with as many tables as at full size: `naive` holds at least eight, the chunks far fewer."""
    script = runpy.run_path(str(BENCHMARKS / "lm_head_memory.py"))
    words = "--tokens 128 --paired-tokens 32 --naive-tokens 32 64 --hidden 8 --vocabulary 4096 --rows 8 --repeats 2"
    args = script["parse"]([*words.split(), "--autocast", "--dry"])
    rows = {(row["loss"], row["tokens"]): row for row in script["measure"](args)["rows"]}
    naive, projected = rows["naive", 32], rows["projected", 32]
    tables = naive["peak_gib"] * 2**30 / (32 * 4096 * 4)
    assert naive["value"] == pytest.approx(projected["value"], rel=1e-4) and 7.5 < tables < 10
    assert len(naive["seconds"]) == 2 and rows["naive", 64]["peak_gib"] > 1.8 * naive["peak_gib"]
    assert rows["naive", 128]["extrapolated"] and "value" not in rows["naive", 128]
    assert rows["naive", 128]["peak_gib"] == pytest.approx(4 * naive["peak_gib"], rel=0.1)
    assert rows["projected", 128]["memory_of_naive"] < 0.25 and rows["routed", 128]["memory_of_naive"] < 0.25
    assert rows["checkpointed", 32]["value"] == pytest.approx(naive["value"], rel=1e-4)
    assert rows["projected", 128]["time_of_checkpointed"][1] > 0 and rows["projected", 128]["head_gradients"] > 1
    assert rows["projected_autocast", 32]["value"] == pytest.approx(projected["value"], rel=1e-2)
    if importlib.util.find_spec("trl"):
        assert rows["trl", 32]["value"] == pytest.approx(naive["value"], rel=1e-4)
        assert rows["projected", 128]["time_of_trl"][1] > 0


def test_a_loss_of_another_commit_is_measured_beside() -> None:
    known = subprocess.run(["git", "cat-file", "-e", "2d95895^{commit}"], cwd=BENCHMARKS, capture_output=True)
    if known.returncode:
        pytest.skip("a shallow clone has no other commits")
    script = runpy.run_path(str(BENCHMARKS / "lm_head_memory.py"))
    words = "--tokens 32 --paired-tokens 32 --naive-tokens 16 --hidden 8 --vocabulary 512 --repeats 1 --before 2d95895"
    rows = {(row["loss"], row["tokens"]): row for row in script["measure"](script["parse"](words.split()))["rows"]}
    assert rows["before", 32]["value"] == pytest.approx(rows["projected", 32]["value"], rel=1e-5)
    assert rows["projected", 32]["time_of_before"][1] > 0
    assert not hasattr(importlib.import_module("vidalign.losses.projected"), "projected_divergence"), "modules are back"


def test_a_benchmark_without_trl_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("trl", "trl.kernels", "trl.kernels.chunked_divergence"):  # an earlier test may have imported them
        monkeypatch.setitem(sys.modules, name, None)
    script = runpy.run_path(str(BENCHMARKS / "lm_head_memory.py"))
    found = script["losses"](script["parse"](["--autocast"]))
    assert list(found) == ["naive", "checkpointed", "projected", "routed", "projected_autocast"]
    assert "pip install -c constraints.txt -e '.[bench]'" in capsys.readouterr().err


def test_the_table_of_the_protocols_counts_their_cells() -> None:
    page = (BENCHMARKS.parent / "docs" / "benchmark.md").read_text(encoding="utf-8")
    counts = {name: len(load_protocol(name).objectives) for name in shipped_protocols()}
    seeds = {name: len(load_protocol(name).seeds) for name in counts}
    shown = re.findall(r"^\| `(\w+)` \|.*\| (\d+) / (\d+) \|", page, re.MULTILINE)
    assert {name: (int(full), int(small)) for name, full, small in shown} == {
        name: (count * seeds[name], count) for name, count in counts.items()
    }
    assert f"at most {sum(count * seeds[name] for name, count in counts.items())} trained cells" in page


def test_every_result_names_its_command_and_machine() -> None:
    files = list((BENCHMARKS / "results").glob("*.json"))
    assert files
    read = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    acceptance = "events_acceptance.json"  # one measurement for each student
    read = [(file, one) for file, all_of in read for one in (all_of.values() if file.name == acceptance else [all_of])]
    for file, result in read:
        result |= result.get("header", {})
        script = re.match(r"python benchmarks/(\w+)\.py\b", result["command"])
        if script:
            assert file.stem.startswith(script[1]) and (BENCHMARKS / f"{script[1]}.py").is_file()
            world = f" --world {file.stem.removeprefix(script[1] + '_')} "
            out = f" --out benchmarks/results/{file.name}"
            assert file.stem == script[1] or result["command"].endswith(out) or world in result["command"]
        else:
            assert result["command"].startswith(
                (
                    f"vidalign bench run {file.stem}",
                    "vidalign merge",
                    "vidalign rewards check",
                    "python -m vidalign.worlds.events.acceptance",
                )
            )
        assert result["machine"]
