"""Seconds of one step of the quickstart's recipe in fp32, bf16 and `auto`, beside the machine's own matrix product.

    python benchmarks/precision.py [--steps N] [--out FILE]

Precisions take turns, step by step, so that a drift of the machine's speed meets all of them; medians are reported,
the first step of each is left out. GFLOP are those of the networks in a step, counted once by torch; the matrix
product is 1024 x 1024 x 1024 in the same precision. Writes benchmarks/results/precision.json, or --out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidalign.engine import distributed
from vidalign.provenance import commit, machine
from vidalign.recipe import load_recipe
from vidalign.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "precision.json"
RECIPE = "world/astrolabe"
PRECISIONS = ("fp32", "bf16", "auto")
SIDE = 1024


def matrix_product(dtype: torch.dtype, repeats: int = 20) -> float:
    """GFLOP/s of a square product, the median of `repeats`."""
    a = torch.randn(SIDE, SIDE, device=distributed.device(), dtype=dtype)
    seconds = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        (a @ a).sum().item()
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / statistics.median(seconds[3:]) / 1e9


def measure(steps: int) -> list[dict[str, Any]]:
    """One row a precision: what it stands for, seconds a step, GFLOP a step, GFLOP/s, and those of the product."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: _trainer(name, steps, Path(folder) / name) for name in PRECISIONS}
        with FlopCounterMode(display=False) as counter:
            trainers["fp32"].train_step()
        flops = counter.get_total_flops() / 1e9
        seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
        for _ in range(steps):
            for name, trainer in trainers.items():
                seconds[name].append(trainer.train_step()["perf/step/seconds"])
    rows = []
    for name, values in seconds.items():
        used, median = distributed.resolve_precision(name), statistics.median(values[1:])  # type: ignore[arg-type]
        own = matrix_product(torch.bfloat16 if used == "bf16" else torch.float32)
        rows.append(
            {
                "precision": name,
                "used": used,
                "seconds": median,
                "gflop": flops,
                "gflops": flops / median,
                "product_gflops": own,
            }
        )
    return rows


def _trainer(precision: str, steps: int, run: Path) -> Trainer:
    settings = [
        f"engine.precision={precision}",
        f"trainer.steps={steps + 2}",
        "trainer.eval_every=0",
        "tracking={tensorboard: false, panel: none, clips_every: 0}",
    ]
    return Trainer(load_recipe(RECIPE, settings), run)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="steps of each precision, the first left out")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    command = shlex.join(["python", "benchmarks/precision.py", *sys.argv[1:]]).split(" --out")[0]
    result = {"command": command, "commit": commit(), "machine": machine(), "rows": measure(arguments.steps)}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
