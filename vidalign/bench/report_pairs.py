"""The paired differences of a benchmark's page, and which of them is shown first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from vidalign.bench.comparison import RowSummary, baseline_of, compare, goal_row
from vidalign.bench.report_charts import metric_of
from vidalign.bench.results import Results
from vidalign.bench.sections import BASE, REFERENCES
from vidalign.report import EvaluationRow, Pair


def pairs(results: Results, found: Mapping[str, Sequence[RowSummary]], headline: str) -> list[Pair]:
    """The best row against the best baseline, then every row against the start weights and against its own baseline,
    then the other pairs of trained rows.

    found: summaries of every split; headline: METRIC/NAME that says what is best.
    """
    rows = [name for name in results.row_names() if results.of_row(name)]
    objectives = [name for name in rows if results.of_row(name)[0].kind == "objective"]
    others = [name for name in rows if name not in (BASE, *objectives)]
    own = [(other, name) for name in objectives if (other := baseline_of(results, name))]
    names = [(BASE, name) for name in (*objectives, *others)] if BASE in rows else []
    names += [pair for pair in own if pair not in names]
    names += [pair for pair in itertools.combinations(objectives, 2) if not {pair, pair[::-1]} & set(names)]
    means = {(split, s.row, s.metric): s.mean for split, members in found.items() for s in members}
    first = _best_pair(
        objectives, [other for other, _ in own], {s.row: s.mean for s in found["held_out"] if s.metric == headline}
    )
    if first is not None:
        names = [first, *(pair for pair in names if pair != first)]
    goal = goal_row(results)
    gaps = _clear_gaps(results, goal, list(found)) if {BASE, goal} <= set(rows) else set()
    return [_pair(results, before, after, means, goal, gaps) for before, after in names]


def _best_pair(
    objectives: Sequence[str], baselines: Sequence[str], means: Mapping[str, float]
) -> tuple[str, str] | None:
    """The baseline that scores highest, and the trained row that does, another one; None where there are not both."""
    ranked = sorted((name for name in objectives if name in means), key=lambda name: -means[name])
    for after in ranked[:1]:
        known = [name for name in dict.fromkeys(baselines) if name in means and name != after]
        return (max(known, key=lambda name: means[name]), after) if known else None
    return None


def _pair(
    results: Results,
    before: str,
    after: str,
    means: Mapping[tuple[str, str, str], float],
    goal: str,
    gaps: set[tuple[str, str]],
) -> Pair:
    closing = before == BASE and after not in REFERENCES
    splits = dict.fromkeys(split for split, _, _ in means)
    comparisons = [
        EvaluationRow(
            (metric := metric_of(d.metric, split)).name,
            means.get((split, before, d.metric), math.nan),
            means.get((split, after, d.metric), math.nan),
            d.difference,
            d.interval,
            metric.judge,
            means[split, goal, d.metric] if closing and (split, d.metric) in gaps else None,
            goal.replace("_", " "),
            prompts=d.prompts,
            detectable=d.detectable,
        )
        for split in splits
        for d in compare(results, before, after, split=split)
    ]
    return Pair(before, after, comparisons)


def _clear_gaps(results: Results, goal: str, splits: Sequence[str]) -> set[tuple[str, str]]:
    """Splits and metrics in which the base student falls short of the row `goal`: there is a gap to close."""
    differences = ((split, d) for split in splits for d in compare(results, BASE, goal, split=split))
    return {(split, d.metric) for split, d in differences if d.verdict == "better"}
