"""Which clips of an evaluation are kept for the page of a run: the largest changes of the headline's score."""

from __future__ import annotations

import math

from vidalign.evaluation.evaluator import SHOWN, Evaluation
from vidalign.report import Pane, ShownPrompt
from vidalign.report.sprites import FRAME_SIDES
from vidalign.tracking.clips import shrink, to_frames

MEMORY = 2**29
"""Bytes of one student's clips among which the shown ones are chosen; a run of large videos chooses among the first."""


def kept_clips(judged: dict[str, Evaluation]) -> list[ShownPrompt]:
    """The chosen prompts, largest change first, then the first SHOWN ones for comparisons with other runs."""
    chosen = _chosen(judged["before"], judged["after"])
    count = min(len(evaluation.clips) for evaluation in judged.values())
    others = [n for n in range(min(SHOWN, count)) if n not in chosen]
    changes = _changes(judged["before"], judged["after"])
    return [
        ShownPrompt(
            judged["after"].prompts[n],
            [
                Pane(name, shrink(to_frames(one.clips[n]), FRAME_SIDES[0]), one.output_scores[n])
                for name, one in judged.items()
            ],
            chosen.get(n, ""),
            changes.get(n, math.nan) if n in chosen else math.nan,
        )
        for n in (*chosen, *others)
    ]


def _chosen(before: Evaluation, after: Evaluation) -> dict[int, str]:
    """SHOWN prompts by the size of their change, with the label of the best, the median and the worst one."""
    changes = _changes(before, after)
    ranked = sorted(changes, key=lambda n: changes[n])
    if not ranked:
        return {}
    labels = {ranked[(len(ranked) - 1) // 2]: "median"} if len(ranked) > 2 else {}
    if len(ranked) > 1:
        labels |= {ranked[0]: "worst", ranked[-1]: "best"}
    by_size = sorted(changes, key=lambda n: -abs(changes[n]))
    picked = [*labels, *(n for n in by_size if n not in labels)][:SHOWN]
    return {n: labels.get(n, "") for n in by_size if n in picked}


def _changes(before: Evaluation, after: Evaluation) -> dict[int, float]:
    """After minus before of the headline's score of each kept clip that has both."""
    if after.headline is None:
        return {}
    label = after.label(after.headline)
    pairs = zip(before.output_scores, after.output_scores, strict=False)
    changes = {n: second.get(label, math.nan) - first.get(label, math.nan) for n, (first, second) in enumerate(pairs)}
    return {n: change for n, change in changes.items() if math.isfinite(change)}
