"""Writes benchmarks/README.md from the files in benchmarks/results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HEAD = """# Measurements

Written by `python benchmarks/tables.py` from the files in `results/`, which hold seed, commit, machine and, for the
quickstart, every per-prompt value. Each table stands below the command that made its file.
"""


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def quickstart(result: dict[str, Any]) -> str:
    """Three seeds of the quickstart recipe."""
    rows = []
    for row in result["rows"]:
        low, high = row["interval"]
        closed = "" if row["gap_closed"] is None else f"{row['gap_closed']:.0%}"
        means = [f"{row[role]:.3f}" for role in ("before", "after", "ground_truth")]
        rows.append([row["metric"], *means, f"{row['difference']:+.3f}", f"{low:+.3f} .. {high:+.3f}", closed])
    seconds = ", ".join(f"{s:.0f} s (seed {seed})" for seed, s in result["training_seconds"].items())
    prompts = len(next(iter(result["runs"].values()))["prompts"])
    return (
        f"## Quickstart: Astrolabe on the embedded world\n\n`{result['command']}`, commit {result['commit']}, "
        f"{result['machine']}.\n{prompts} held-out prompts, means over seeds; 95 % bootstrap intervals of the paired "
        f"difference over prompts.\nTraining took {seconds}.\n\n"
        + table(["metric", "before", "after", "ground truth", "difference", "95 % interval", "gap closed"], rows)
    )


def perturbations(result: dict[str, Any]) -> str:
    """What scorer and auditor make of spoiled ground truth."""
    names = ["text_alignment", "motion_quality", "visual_quality", "strict_pass", "audit/composite", "audit/pass"]
    rows = [[row, *(f"{scores[name]:.3f}" for name in names)] for row, scores in result["rows"].items()]
    title = f"## Spoiled ground truth\n\n`{result['command']}`, {result['machine']}.\n\n"
    return title + table(["clips", *names], rows)


def rollout(result: dict[str, Any]) -> str:
    """Cost of rollouts: phases of a chunk, sharing a prefix, caching."""
    place = result["machine"]
    machine = f"{place['device']}, {place['threads']} thread, torch {place['torch']}"
    phases = [[r["batch"], r["denoise_ms"], r["clean_ms"], r["decode_ms"]] for r in result["phases"]]
    sharing = [[r["plan"], f"{r['time_ratio']:.2f}", f"{r['forward_ratio']:.2f}"] for r in result["sharing"]]
    caching = [[r["chunks"], f"{r['speed_up']:.2f}"] for r in result["caching"]]
    return "\n\n".join(
        [
            f"## Rollouts\n\n`{result['command']}`, {machine}; world-sized student, random weights.",
            table(["batch", "denoise, ms a chunk", "clean pass, ms a chunk", "decode, ms a chunk"], phases),
            "A shared prefix against G = 8 independent rollouts (forwards of one chunk, clean passes included):",
            table(["plan, chunks", "time ratio", "forward ratio"], sharing),
            "The cache against recomputing the past for every forward, same latents:",
            table(["chunks", "times faster"], caching),
        ]
    )


def long_tuning(result: dict[str, Any]) -> str:
    """Peak memory of a step of long tuning."""
    rows = [
        [f"{r['lengths']}x", r["frames"], r["window_frames"], f"{r['peak_mib']:.1f}", f"{r['cache_mib']:.1f}"]
        for r in (*result["window"], result["whole"])
    ]
    first, *_ = result["window"]
    return (
        f"## Long tuning\n\n`{result['command']}`, commit {result['commit']}, {result['machine']}.\n"
        "Peak memory of one training step above the weights; the window is the last one of the video. The cache is\n"
        "what a rolled history leaves (2 prompts); every chunk of the window reads it, broadcast over the group.\n"
        f"Weights and weight sets take {first['resident_mib']:.1f} MiB more: with them, the window at 4 lengths takes "
        f"{result['ratio']:.2f} of what\nback-propagating through the whole video takes (last row).\n\n"
        + table(["video, training lengths", "frames", "frames trained on", "peak, MiB", "cache, MiB"], rows)
    )


def render() -> str:
    """The whole page."""
    parts = [HEAD.rstrip()]
    for section in (quickstart, perturbations, rollout, long_tuning):
        file = FOLDER / "results" / f"{section.__name__}.json"
        if file.is_file():
            parts.append(section(json.loads(file.read_text(encoding="utf-8"))))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(render(), encoding="utf-8")
