"""Fills the page of `vidalign.report` from several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from vidalign.evaluation.evaluator import Evaluation
from vidalign.report import Answer, Chart, Pair, Pane, Report, Row, ShownAnswers, ShownPrompt, Trace
from vidalign.report.charts import history_charts
from vidalign.workflows.run_files import RunFiles
from vidalign.workflows.training_report import (
    cost_table,
    differences_of,
    hacking_of,
    headline_of,
    missing_of,
    origin_of,
    paths_of,
    result_of,
    row_of,
)

Output = TypeVar("Output", Pane, Answer)


def side_by_side(runs: dict[str, RunFiles]) -> Report:
    """The page of several runs by name, each against the student that it started from."""
    judged = {name: run.judgement.judged for name, run in runs.items() if run.judgement}
    headline = next((found for run in runs.values() if (found := headline_of(run))), None)
    truth = next((one["ground truth"] for one in judged.values() if "ground truth" in one), None)
    starts = start_rows(judged)
    rows = [row_of(start, "before", judged[name]["before"]) for start, name in starts.items()]
    rows += [row_of(name, "after", judged[name]["after"]) if name in judged else Row(name) for name in runs]
    rows += [row_of("ground truth", "ground truth", truth)] if truth else []
    paths = [path for name, run in runs.items() for path in paths_of(run.history, name)]
    example = next(iter(judged.values()), {})
    same = len({tuple(one["after"].prompts) for one in judged.values()}) <= 1
    return Report(
        title=f"{len(runs)} runs side by side",
        result="\n".join(f"{name}: {result_of(run)}" for name, run in runs.items()),
        facts={"prompts": "the same for all runs" if same else "not the same for all runs: do not compare their gains"},
        note="Each run against the student that it started from, paired by prompt; 95 % intervals over prompts.",
        leaderboard=False,
        rows=rows,
        headline=headline,
        baseline=next(iter(starts), ""),
        pairs=[Pair("before", name, differences_of(runs[name])) for name in judged],
        hacking=hacking_of(headline, example, paths),
        curves=_joined_curves(runs),
        prompts=_joined_clips(runs, judged),
        prompts_note="Prompts whose clips every run kept; runs without clips are left out.",
        fps=next(iter(runs.values())).fps,
        answers=_joined_answers(runs, judged),
        answers_note="The first response to each example, graded; those on which the runs differ most come first.",
        warnings=[replace(one, cell=name) for name, run in runs.items() for one in run.warnings + missing_of(run)],
        commands=[*dict.fromkeys(run.command for run in runs.values() if run.command)],
        texts={f"Recipe of {name}": run.text for name, run in runs.items()},
        environment={name: origin_of(run) for name, run in runs.items()},
        cost=cost_table(list(runs.values()), list(runs)),
    )


def start_rows(judged: dict[str, dict[str, Evaluation]]) -> dict[str, str]:
    """Row of each student that runs started from -> the first run that did; students with equal scores are one."""
    groups: dict[str, list[str]] = {}
    for name, one in judged.items():
        metrics = sorted(one["before"].metrics.items())
        groups.setdefault(str([(score, values.tolist()) for score, values in metrics]), []).append(name)
    if len(groups) == 1:
        return {"before": next(iter(judged))}
    return {f"before {', '.join(names)}": names[0] for names in groups.values()}


def _joined_curves(runs: dict[str, RunFiles]) -> list[Chart]:
    """A chart a series, a line a run."""
    joined: dict[tuple[str, str], Chart] = {}
    for name, run in runs.items():
        for chart in history_charts(run.history, name)[0]:
            for trace in chart.traces:
                title = chart.title if trace.label == chart.title else f"{chart.title}: {trace.label}"
                line = Trace(name, trace.y, trace.x, name)
                found = joined.setdefault((chart.group, title), replace(chart, title=title, traces=[]))
                found.traces.append(line)
    order = list(dict.fromkeys(group for group, _ in joined))
    return sorted(joined.values(), key=lambda chart: order.index(chart.group))


def _joined_clips(runs: dict[str, RunFiles], judged: dict[str, dict[str, Evaluation]]) -> list[ShownPrompt]:
    """The prompts that all runs with clips kept."""
    kept = {name: {one.prompt: one.panes for one in runs[name].clips} for name in judged if runs[name].clips}
    return [ShownPrompt(prompt, line) for prompt, line in _joined(kept, judged)]


def _joined_answers(runs: dict[str, RunFiles], judged: dict[str, dict[str, Evaluation]]) -> list[ShownAnswers]:
    """The prompts that all runs with responses kept, those on whose grade the runs differ most first."""
    kept = {name: {one.prompt: one.answers for one in runs[name].answers} for name in judged if runs[name].answers}
    shown = [ShownAnswers(prompt, line) for prompt, line in _joined(kept, judged)]
    return sorted(shown, key=lambda one: -_spread([answer.score for answer in one.answers]))


def _spread(scores: list[float]) -> float:
    finite = [score for score in scores if math.isfinite(score)]
    return max(finite, default=0.0) - min(finite, default=0.0)


def _joined(
    kept: dict[str, dict[str, list[Output]]], judged: dict[str, dict[str, Evaluation]]
) -> Iterator[tuple[str, list[Output]]]:
    """Each shared prompt with the outputs of what the runs started from, of each run, and of the ground truth.

    kept: by run and prompt the outputs that it kept.
    """
    starts = start_rows({name: judged[name] for name in kept})
    for prompt in next(iter(kept.values()), {}):
        if not all(prompt in one for one in kept.values()):
            continue
        outputs = {name: {output.row: output for output in one[prompt]} for name, one in kept.items()}
        line = [replace(outputs[name]["before"], row=start) for start, name in starts.items()]
        line += [replace(outputs[name]["after"], row=name) for name in kept]
        truth = next(iter(outputs.values())).get("ground truth")
        yield prompt, line + ([truth] if truth else [])
