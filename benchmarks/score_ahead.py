"""How much of the time of a slow reward is hidden behind the rollout.

    python benchmarks/score_ahead.py

Trains the embedded student by `world/astrolabe`, rolled out in parts, with a reward that waits a while for each part,
as one behind a server does, and nothing else. The wait is a share of what rolling out one part takes, measured before.
Each setting runs with `trainer.score_ahead` and without, in pairs. Writes the rows with command, seed, commit and
machine to `benchmarks/results/score_ahead.json`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vidalign.provenance import commit, machine
from vidalign.recipe import load_recipe
from vidalign.registry import register
from vidalign.tracking.jsonl import read_records
from vidalign.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "score_ahead.json"
SEED, STEPS, PROMPTS, GROUP, PARTS = 0, 5, 4, 24, 12
"""Parts of 8 candidates, as `wan_1_3b/astrolabe` rolls out. The last has only the replay of a group to hide behind."""
SHARES = (0.5, 0.9, 1.5)
"""Time of the reward for a part, in times of rolling one out."""


@register("rewards", "slow")
class Slow:
    """Brightness, after a while."""

    name, judges, waits = "slow", "clips", True
    seconds = 0.0

    def score(self, clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        return {"slow": clips.flatten(1).mean(1)}


def steps(ahead: bool) -> list[dict[str, Any]]:
    """What every step logs but the first, which builds caches."""
    words = [f"trainer.score_ahead={str(ahead).lower()}", f"trainer.steps={STEPS}", f"seed={SEED}", "~rewards"]
    words += [f"trainer.prompts_per_step={PROMPTS}", f"objective.group_size={GROUP}", "trainer.save_every=99"]
    words += [f"trainer.rollout_batch={PROMPTS * GROUP // PARTS}", "rewards={slow: 1}", "evaluation={count: 1}"]
    words += ["tracking={tensorboard: false, clips_every: 0, panel: none}"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(load_recipe("world/astrolabe", words), folder)
        for _ in range(STEPS):
            trainer.train_step()
        return [row for row in read_records(Path(folder) / "metrics.jsonl") if row["kind"] == "metrics"][1:]


def median(rows: list[dict[str, Any]], name: str) -> float:
    """Of a metric over steps."""
    return statistics.median(row[name] for row in rows)


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    Slow.seconds = 0.0
    rolling = median(steps(False), "perf/collect/seconds") / PARTS
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        Slow.seconds = share * rolling
        ahead, plain = steps(True), steps(False)
        rows.append(
            {
                "reward over part": share,
                "hidden": round(median(ahead, "perf/score/hidden"), 4),
                "seconds of a step": round(median(ahead, "perf/step/seconds"), 4),
                "without score_ahead": round(median(plain, "perf/step/seconds"), 4),
                "reward alone": round(PARTS * Slow.seconds, 4),
            }
        )
        print(rows[-1], flush=True)
    document = {
        "command": "python benchmarks/score_ahead.py",
        "seed": SEED,
        "commit": commit(),
        "machine": machine(),
        "seconds of a part": round(rolling, 4),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
