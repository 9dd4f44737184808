"""Fills the page of `vidalign.report` from several runs side by side."""

from __future__ import annotations

from dataclasses import replace

from vidalign.evaluation.evaluator import Evaluation
from vidalign.report import Chart, Pair, Report, Row, ShownPrompt, Trace
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
    """The prompts that all runs with clips kept: what they started from, each run, the ground truth."""
    judged = {name: one for name, one in judged.items() if runs[name].clips}
    kept = [{shown.prompt: shown for shown in runs[name].clips} for name in judged]
    shared = [prompt for prompt in (kept[0] if kept else {}) if all(prompt in one for one in kept)]
    starts = start_rows(judged)
    shown = []
    for prompt in shared:
        panes = {name: {pane.row: pane for pane in one[prompt].panes} for name, one in zip(judged, kept, strict=True)}
        line = [replace(panes[name]["before"], row=start) for start, name in starts.items()]
        line += [replace(panes[name]["after"], row=name) for name in judged]
        truth = next(iter(panes.values())).get("ground truth")
        shown.append(ShownPrompt(prompt, line + ([truth] if truth else [])))
    return shown
