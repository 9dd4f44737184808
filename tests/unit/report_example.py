"""Made-up reports for the tests of the page: a benchmark of five rows and three seeds, and one run. No measurement."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from vidalign.report import (
    CellWarning,
    Chart,
    EvaluationRow,
    Hacking,
    Metric,
    Pair,
    Pane,
    Report,
    Row,
    Score,
    ShownPrompt,
    Table,
    Trace,
    TrainingPath,
)
from vidalign.report.charts import history_charts

AUDITOR, TRAINED, COST = "held-out auditor", "trained rewards", "cost"
HELD_OUT, TRAINED_MEAN = Metric(AUDITOR, "composite"), Metric(TRAINED, "composite")
PROMPTS = ["a small red circle falls", 'odd </script><b>"bold"</b> & {{ 7 * 7 }}']
LEVELS = {
    "base": (0.52, 0.55),
    "ground_truth": (0.99, 0.98),
    "sft": (0.6, 0.62),
    "astrolabe": (0.75, 0.71),
    "adversary": (0.9, 0.4),
}
"""Trained and held-out score of each row."""
FRAMES = 6


def grey(row: int, frames: int = FRAMES, side: int = 32) -> np.ndarray:
    """Frame f of row r is plain grey 40 f + 8 r, so that a canvas tells which frame it shows."""
    levels = np.arange(frames) * 40 + 8 * row
    return np.broadcast_to(levels[:, None, None, None].astype(np.uint8), (frames, side, side, 3)).copy()


def score(mean: float, width: float = 0.03) -> Score:
    return Score(mean, (mean - width, mean + width), (mean - width / 2, mean, mean + width / 2))


def bench_row(name: str, index: int) -> Row:
    trained, held_out = LEVELS[name]
    scores = {HELD_OUT: score(held_out)}
    scores |= {Metric(AUDITOR, m): score(held_out + i / 50) for i, m in enumerate(("law", "colour", "shape", "pass"))}
    scores |= {TRAINED_MEAN: score(trained), Metric(TRAINED, "motion_quality"): score(trained - 0.1)}
    if name not in ("base", "ground_truth"):
        scores[Metric(COST, "seconds", higher_is_better=False)] = Score(60.0 + index)
    kind = "reference" if name in ("base", "ground_truth") else "objective"
    if kind == "reference":
        return Row(name, kind, scores, group="references")
    about = {"learns from": "rewards", "paper, arXiv": f"2600.0000{index}", "steps": "60", "wall time": "3 min"}
    made = {"recipe": f"world/{name}", "seeds": "0, 1, 2"}
    group = "examples" if name == "adversary" else "methods"
    return Row(name, kind, scores, made, group, about, "sft" if name == "astrolabe" else "base")


def pair(before: str, after: str) -> Pair:
    rows = []
    for judge, name, axis in ((AUDITOR, "composite", 1), (AUDITOR, "pass", 1), (TRAINED, "composite", 0)):
        first, second = LEVELS[before][axis], LEVELS[after][axis]
        change = second - first
        rows.append(EvaluationRow(name, first, second, change, (change - 0.08, change + 0.08), judge, detectable=0.1))
    return Pair(before, after, rows)


def curve(row: str, seed: int, axis: int) -> Trace:
    first, last = LEVELS["base"][axis], LEVELS[row][axis]
    part = [0.0, 0.3, 0.6, 0.8, 1.0]
    y = [first + (last - first) * p**0.5 + 0.01 * seed for p in part]
    x = {"step": [60 * p for p in part], "forwards": [9e4 * p for p in part], "seconds": [200 * p for p in part]}
    return Trace(f"{row}, seed {seed}", y, x, row)  # type: ignore[arg-type]


def mean_curve(row: str, axis: int) -> Trace:
    """The mean over three seeds with its band."""
    low, middle, high = (curve(row, seed, axis) for seed in range(3))
    return Trace(row, middle.y, middle.x, row, (low.y, high.y))


def bench(**changes: object) -> Report:
    objectives = ["sft", "astrolabe", "adversary"]
    traces = {axis: [mean_curve(row, axis) for row in objectives] for axis in (0, 1)}
    drift = [
        Trace(f"{row}", [LEVELS[row][1] - 0.02 * i for i in range(8)], {"chunk": list(range(1, 9))}, row)
        for row in LEVELS
    ]
    fields: dict[str, object] = dict(
        title="Benchmark all_objectives",
        summary="Every objective under one budget.",
        facts={"protocol_hash": "0123abcd", "cells": "15"},
        note="64 held-out prompts, 3 training seeds; 95 % intervals over prompts and seeds.",
        rows=[bench_row(name, index) for index, name in enumerate(LEVELS)],
        headline=HELD_OUT,
        baseline="base",
        pairs=[pair("base", name) for name in ("sft", "astrolabe", "adversary")] + [pair("sft", "astrolabe")],
        hacking=Hacking(
            TRAINED_MEAN,
            HELD_OUT,
            [TrainingPath(row, mean_curve(row, 0).y, mean_curve(row, 1).y) for row in objectives],
        ),
        curves=[Chart("held-out auditor: composite", traces[1]), Chart("trained rewards: composite", traces[0])],
        drift=[Chart("drift: nearness", drift)],
        prompts=[ShownPrompt(p, [Pane(n, grey(i), {"held_out": 0.5}) for i, n in enumerate(LEVELS)]) for p in PROMPTS],
        warnings=[
            CellWarning("the trained reward rose", "adversary, seed 1", "held_out_falling", "stop earlier"),
            CellWarning("no space left on device", "sft, seed 2", failed=True),
        ],
        diagnostics=[
            Table("Spoiled true clips", ["trained", "held-out"], [("blur_1_px", [0.4, float("nan")])], "A note.")
        ],
        commands=["vidalign bench run all_objectives --seeds 0,1,2 " + "x" * 200],
        texts={"Protocol": "x: " + "long " * 60},
        environment={"machine": "2 cores"},
    )
    return Report(**(fields | changes))  # type: ignore[arg-type]


HISTORY = {
    "reward/mean": [(1, 0.1), (2, float("nan")), (3, 0.3)],
    "reward/motion/mean": [(1, 0.2), (2, 0.25)],
    "objective/loss/mean": [(step, float(step)) for step in range(5000)],
    "objective/alpha_0.60/mean": [(1, 0.5), (2, 0.4999999), (3, 0.5000001)],
    "health/held_out/mean": [(1, 0.5)],
    "health/skipped_updates": [(1, 0.0), (2, 0.0), (3, 0.0)],
    "perf/step/seconds": [(1, 2.0), (2, 2.5), (3, 1.0)],
}


def run(**changes: object) -> Report:
    """One training run: before, after and ground truth."""
    charts, constant = history_charts(HISTORY)
    rows = [
        Row(name, "objective" if name == "after" else "reference", {HELD_OUT: score(mean), TRAINED_MEAN: Score(mean)})
        for name, mean in (("before", 0.5), ("after", 0.7), ("ground truth", 0.998))
    ]
    fields: dict[str, object] = dict(
        title="Astrolabe & co",
        result="+0.200 on the held-out auditor.",
        summary="A summary.",
        facts={"Commit": "abc123"},
        leaderboard=False,
        rows=rows,
        headline=HELD_OUT,
        baseline="before",
        pairs=[
            Pair(
                "before",
                "after",
                [
                    EvaluationRow("composite", 0.5, 0.7, 0.2, (0.1, 0.3), AUDITOR, goal=0.998, detectable=0.141),
                    EvaluationRow("tiny", -1.2e-05, 1.2e-05, 2.4e-05, (-3e-05, 4e-05), AUDITOR, goal=0.998),
                    EvaluationRow("flicker", 0.1, 0.2, 0.1, (0.05, 0.15), higher_is_better=False),
                ],
            )
        ],
        hacking=Hacking(TRAINED_MEAN, HELD_OUT, [TrainingPath("after", [0.6, 0.8], [0.5, 0.7])]),
        curves=charts,
        constant=constant,
        prompts=[
            ShownPrompt(p, [Pane("before", grey(0)), Pane("after", grey(1), {"motion": 0.25})], label, change)
            for p, label, change in zip(PROMPTS, ("best", "worst"), (0.4, -0.1), strict=True)
        ],
        warnings=[CellWarning("the gradient norm is 0", name="zero_gradient", fix="look at the advantages")],
        commands=["vidalign train world/astrolabe"],
        texts={"Recipe": "objective:\n  name: astrolabe\n"},
        environment={"torch": "2.13.0"},
    )
    return Report(**(fields | changes))  # type: ignore[arg-type]


def svgs(html: str) -> list[ElementTree.Element]:
    """The charts, parsed as XML."""
    parts = re.findall(r'<svg class="plot".*?</svg>', html, re.DOTALL)
    return [ElementTree.fromstring(re.sub(r" hidden(?=>)", "", part)) for part in parts]


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    """The corners of a path."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([^MLhZ]+)", element.get("d", ""))]


def many(count: int = 20, collapsed: tuple[str, ...] = ("row_7", "row_18")) -> Report:
    """A benchmark of many rows close together, two of which collapsed."""
    rng = np.random.default_rng(0)
    names = [f"row_{n}" for n in range(count)]
    level = {name: 0.02 if name in collapsed else 0.7 + 0.1 * float(rng.random()) for name in names}
    base = Row("base", "reference", {HELD_OUT: score(0.65), TRAINED_MEAN: score(0.65)}, group="references")
    rows = [
        Row(n, scores={HELD_OUT: score(level[n]), TRAINED_MEAN: score(level[n] + 0.01)}, group="methods") for n in names
    ]
    pairs = [
        Pair(
            "base",
            n,
            [EvaluationRow("composite", 0.65, level[n], (d := level[n] - 0.65), (d - 0.02, d + 0.02), AUDITOR)],
        )
        for n in names
    ]
    traces = [Trace(n, [0.65, level[n]], {"step": [0, 60]}, n) for n in names]
    curves, hacking = [Chart("composite", traces, AUDITOR)], Hacking(TRAINED_MEAN, HELD_OUT)
    return bench(rows=[base, *rows], pairs=pairs, curves=curves, hacking=hacking, drift=[], prompts=[])
