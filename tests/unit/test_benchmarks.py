"""The tables that people read are the numbers that were measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_page_is_generated_from_the_results() -> None:
    tables = runpy.run_path(str(BENCHMARKS / "tables.py"))
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == tables["render"](), "run benchmarks/tables.py"


def test_every_result_names_its_command_and_machine() -> None:
    files = list((BENCHMARKS / "results").glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        commands = (f"python benchmarks/{file.stem}.py", f"vidalign bench run {file.stem}")
        assert result["command"].startswith(commands) and result["machine"]
