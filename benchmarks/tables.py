"""Writes benchmarks/README.md and the results in docs/tuning.md from the files in benchmarks/results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path

from bench_tables import bench
from other_tables import MEASUREMENTS
from tuning_tables import PAGE, tuning_page

from vidalign.bench.results import read_results

FOLDER = Path(__file__).parent
HEAD = """# Measurements

Written by `python benchmarks/tables.py` from the files in `results/`, which hold seed, commit, machine and, for
benchmarks, every per-prompt value. Each table stands below the command that made its file. `make bench` runs a small
version of every protocol in `protocols/`; it writes below `runs/bench`, not here. How intervals and detectable
differences are computed: `docs/benchmark.md`. Those of the validated judges and of merges stand as they were measured,
percentile bootstraps over clips or prompts.
"""


def render() -> str:
    """The whole page: benchmarks by name, then the other measurements."""
    parts = [HEAD.rstrip()]
    for file in sorted((FOLDER / "results").glob("*.json"), key=lambda f: (f.stem in MEASUREMENTS, f.stem)):
        if file.stem in MEASUREMENTS:
            heading, show = MEASUREMENTS[file.stem]
            parts.append(f"## {heading}\n\n{show(json.loads(file.read_text(encoding='utf-8')))}")
        else:
            parts.append(bench(read_results(file)))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(render(), encoding="utf-8")
    PAGE.write_text(tuning_page(), encoding="utf-8")
