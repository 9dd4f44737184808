"""What the quickstart recipe gains, over three seeds: every trained reward and every metric of the auditor.

    python benchmarks/quickstart.py --seeds 0 1 2

trains ``world/astrolabe`` once per seed (finished runs below ``runs/benchmark`` are kept), then prints the rows and
writes them with per-prompt values, commit and machine to ``benchmarks/results/quickstart.json``. Seeds differ in
the noise of training and of judging; the interval of a difference is a 95 % bootstrap over prompts of the mean over
seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from vidalign.bench.bootstrap import interval
from vidalign.provenance import commit, machine, world_hash
from vidalign.runs import STUDENT
from vidalign.tracking.jsonl import read_records

RESULT = Path(__file__).parent / "results" / "quickstart.json"
RUNS = Path("runs") / "benchmark"
RECIPE = "world/astrolabe"


def run(seed: int, overrides: list[str]) -> dict[str, object]:
    """Train one seed unless its run is finished; its evaluation with the training time in seconds."""
    folder = RUNS / f"quickstart-{seed}"
    if not (folder / "evaluation.json").is_file():
        if (folder / STUDENT).is_file():
            arguments = ["evaluate", "--run", str(folder)]
        else:
            arguments = ["train", RECIPE, f"seed={seed}", *overrides, "--run", str(folder), "--resume"]
        subprocess.run([sys.executable, "-m", "vidalign.cli", *arguments], check=True)
    steps = [r["perf/step/seconds"] for r in read_records(folder / "metrics.jsonl") if r["kind"] == "metrics"]
    return {**json.loads((folder / "evaluation.json").read_text()), "training_seconds": round(sum(steps), 1)}


def summarise(runs: dict[int, dict]) -> list[dict[str, object]]:
    """One row a metric: means over prompts and seeds, mean difference, its interval, gap closed."""
    rows = []
    for name in next(iter(runs.values()))["values"]["after"]:
        mean = {
            role: torch.stack([by_prompt(run, role, name) for run in runs.values()]).mean(0)
            for role in ("before", "after", "ground_truth")
        }
        gap = float((mean["ground_truth"] - mean["before"]).mean())
        difference = float((mean["after"] - mean["before"]).mean())
        low, high = interval(mean["after"] - mean["before"])
        row = {"metric": name} | {role: round(float(values.mean()), 4) for role, values in mean.items()}
        row |= {"difference": round(difference, 4), "interval": [round(low, 4), round(high, 4)]}
        rows.append(row | {"gap_closed": round(difference / gap, 3) if gap > 0.01 else None})
    return rows


def by_prompt(run: dict, role: str, name: str) -> torch.Tensor:
    """The per-prompt values of a metric in the alphabetical order of prompts: every seed shuffles them its own way."""
    return torch.tensor([value for _, value in sorted(zip(run["prompts"], run["values"][role][name], strict=True))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="changes to the recipe, key=value")
    arguments = parser.parse_args()
    runs = {seed: run(seed, arguments.overrides) for seed in arguments.seeds}
    rows = summarise(runs)
    seeds = " ".join(map(str, arguments.seeds))
    document = {
        "command": " ".join([f"python benchmarks/quickstart.py --seeds {seeds}", *arguments.overrides]),
        "commit": commit(),
        "machine": machine(),
        "world_hash": world_hash(),
        "training_seconds": {str(seed): run["training_seconds"] for seed, run in runs.items()},
        "rows": rows,
        "runs": {str(seed): {"prompts": run["prompts"], "values": run["values"]} for seed, run in runs.items()},
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
