"""The tables that people read are the numbers that were measured."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

from bench_helpers import make_cell, make_results

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_page_is_generated_from_the_results() -> None:
    tables = runpy.run_path(str(BENCHMARKS / "tables.py"))
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == tables["render"](), "run benchmarks/tables.py"


def test_a_benchmark_is_shown_with_intervals_and_claims() -> None:
    tables = runpy.run_path(str(BENCHMARKS / "tables.py"))
    auditor = "world_auditor/composite"
    cells = [
        make_cell("base", 0, [0.2, 0.3, 0.4], "reference", auditor),
        make_cell("sft", 0, [0.3, 0.4, 0.5], metric=auditor),
        make_cell("sft", 1, [0.3, 0.4, 0.5], metric=auditor),
        make_cell("odd", 0, [0.1, 0.3, 0.6], metric=auditor),
        make_cell("ground_truth", 0, [0.7, 0.8, 0.9], "reference", auditor),
    ]
    cells[1].spent.forwards, cells[2].spent.forwards = 100.0, 200.0
    results = make_results(cells)
    results.machine = {"description": "2 cores"}
    fall = {"mean": 0.2, "interval": [-0.1, 0.3], "told_apart": False}
    results.health = {"falls": {"blur 1 px": fall}, "hacking_probe": {}}
    page = tables["bench"](results)
    assert "| ground_truth | auditor | +0.500 | +0.500 .. +0.500 | better |  |" in page
    assert "| blur 1 px | 0.200 (-0.100 .. 0.300) | no |" in page
    assert "| base | 0.300 (0.200 .. 0.400) |" in page
    assert "| sft | auditor | +0.100 | +0.100 .. +0.100 | better | 20% |" in page
    assert re.search(r"\| odd \| auditor \| \+0.033 \| -0.100 .. \+0.200 \| unclear \| 7% \|", page)
    assert "| sft | 150 | 0 |" in page and "`vidalign bench run p`" in page and "training seeds 0, 1" in page


def test_losses_behind_the_head_are_shown_beside_the_naive_one() -> None:
    sizes = {"tokens": 64, "hidden": 8, "vocabulary": 100, "dtype": "fp32"}
    rows = {
        "naive": {"peak_gib": 8.0, "memory_of_naive": 1.0, "seconds": 2.0},
        "chunked": {"peak_gib": 1.0, "memory_of_naive": 0.125, "seconds": 3.5},
    }
    result = {"command": "python x.py", "commit": "abc", "machine": "2 cores", "sizes": sizes, "rows": rows}
    page = runpy.run_path(str(BENCHMARKS / "tables.py"))["lm_head_memory"](result)
    assert "| chunked | 1.00 | 12% | 3.50 |" in page and "vocabulary 100" in page and "`python x.py`" in page


def test_every_result_names_its_command_and_machine() -> None:
    files = list((BENCHMARKS / "results").glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        commands = (f"python benchmarks/{file.stem}.py", f"vidalign bench run {file.stem}")
        assert result["command"].startswith(commands) and result["machine"]
