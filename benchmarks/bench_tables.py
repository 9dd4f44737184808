"""Tables of a benchmark's result: scores, paired differences, parts of the prompts, costs, validation of the judges."""

from __future__ import annotations

import math
from typing import Any

import yaml
from other_tables import table

from vidalign.bench.comparison import baselines_of, compare, detectable, goal_row, metric_names, summaries, varied
from vidalign.bench.differences import first_difference
from vidalign.bench.parts import CHOSEN, MANY, Parts, differences_of, families, means_of, starts
from vidalign.bench.protocol import load_protocol
from vidalign.bench.results import Cell, Results
from vidalign.bench.sections import BASE, CLAIM_SEEDS, REFERENCES
from vidalign.bench.shipped import shipped_protocols
from vidalign.bench.watched import shown, watched

SPENT = ("forwards", "reward_calls", "teacher_calls", "responses", "seconds", "peak_memory_mib")
DETECTABLE = "*detectable difference*"


def bench(results: Results) -> str:
    """A protocol's rows, their paired differences to start weights and baselines, parts of the prompts, and costs."""
    rows = [row for row in results.row_names() if results.of_row(row)]
    splits = results.of_row(rows[0])[0].prompt_split
    parts = [
        f"## {results.protocol.name}\n\n{_header(results)}",
        *outdated(results),
        _scores(results, rows, "held_out"),
    ]
    if "out_of_domain" in splits:
        parts += ["Out-of-domain prompts:", _scores(results, rows, "out_of_domain")]
    if BASE in rows and len(rows) > 1:
        parts += [
            "Paired differences to `base`; a win is claimed only where the interval excludes zero. Detectable: the "
            "difference that such data show with probability .8. Gap closed: the share of the distance to "
            f"`{goal_row(results)}`, where that is clear of zero:",
            _gains(results, rows),
        ]
    parts += [*_to_baselines(results), *_parts(results), *_costs(results, rows)]
    failed = [cell for cell in results.cells if cell.error is not None]
    parts += [f"`{cell.row}`, seed {cell.seed}, failed: {cell.error}" for cell in failed]
    if results.health:
        falls, probe = results.health.get("falls", {}), results.health["hacking_probe"]
        if falls:
            parts += ["Corrupted ground truth, as the auditor sees it:", _falls(falls, results.health["perturbations"])]
        parts += ["An adversary that raises one reward alone, pixel by pixel:", _probe(probe)] if probe else []
    return "\n\n".join(parts)


def _header(results: Results) -> str:
    cells = [cell for cell in results.cells if cell.error is None]
    seeds = sorted({cell.seed for cell in cells if cell.kind == "objective"})
    first, last = cells[0].prompt_split["held_out"]
    noise = len((yaml.safe_load(results.protocol.text).get("evaluation") or {}).get("seeds", [0]))
    commits = ", ".join(dict.fromkeys(cell.commit for cell in cells))
    return (
        f"`{results.command}`, protocol {results.protocol.hash}, commit {commits}, "
        f"{results.machine['description']}.\n{last - first} held-out prompts x {noise} evaluation "
        f"{'seed' if noise == 1 else 'seeds'}, training seeds {', '.join(map(str, seeds))}; 95 % intervals over "
        f"{varied(len(seeds))}."
        + ("" if len(seeds) >= CLAIM_SEEDS else f" Fewer than {CLAIM_SEEDS} training seeds: no claim is tested.")
    )


def outdated(results: Results) -> list[str]:
    """Lines below the title of a table whose numbers the code no longer gives, or whose protocol is another by now."""
    lines = []
    if results.outdated_since:
        lines.append(f"**Outdated since commit {results.outdated_since}**: the code gives other numbers now.")
    if results.protocol.name in shipped_protocols():
        changed = first_difference(load_protocol(results.protocol.name).text, results.protocol.text)
        lines += [f"**Measured by an earlier version of the protocol**: {changed}."] if changed else []
    return lines


def _scores(results: Results, rows: list[str], split: str) -> str:
    found = {(s.row, s.metric): s for s in summaries(results, split)}
    headings = {m: heading for m, heading in _shown(results).items() if any((row, m) in found for row in rows)}
    lines = []
    for row in rows:
        cells = [
            _with_interval(found[row, m].mean, found[row, m].interval) if (row, m) in found else "" for m in headings
        ]
        lines.append([row, *cells])
    least = detectable(results, split)
    if any(metric in least for metric in headings):
        lines.append([DETECTABLE, *(f"*{least[m]:.3f}*" if m in least else "" for m in headings)])
    return table(["row", *headings.values()], lines)


def _shown(results: Results) -> dict[str, str]:
    """Headings of the metrics that get a column."""
    return shown(metric_names([cell for cell in results.cells if cell.error is None]))


def _gains(results: Results, rows: list[str]) -> str:
    goal, headings = goal_row(results), _shown(results)
    best = compare(results, BASE, goal) if goal in rows else []
    lines, gaps = [], {d.metric: d.difference for d in best if d.verdict == "better"}
    single = sum(row not in REFERENCES for row in rows) == 1  # then every metric of the judges, else the main ones
    judges = {name.partition("/")[0] for name in vars(watched(metric_names(results.cells))).values()}
    for row in rows:
        if row != BASE:
            found = {d.metric: d for d in compare(results, BASE, row)}
            judged = [m for m in found if single and m.partition("/")[0] in judges]
            for metric in (m for m in dict.fromkeys([*judged, *headings]) if m in found):
                d = found[metric]
                closed = f"{d.difference / gaps[metric]:.0%}" if metric in gaps and row not in REFERENCES else ""
                lines.append([row, headings.get(metric, metric), *_difference(d), closed])
    return table(["row", "metric", "difference", "95 % interval", "detectable", "", "gap closed"], lines)


def _difference(d: Any) -> list[str]:
    low, high = d.interval
    ends = "" if math.isnan(low) else f"{low:+.3f} .. {high:+.3f}"
    return [f"{d.difference:+.3f}", ends, "" if math.isnan(d.detectable) else f"{d.detectable:.3f}", d.verdict]


def _to_baselines(results: Results) -> list[str]:
    """Paired differences to baselines other than the start weights, and what they test."""
    headings, lines = _shown(results), []
    for row, baseline in baselines_of(results).items():
        if baseline != BASE:
            found = {d.metric: d for d in compare(results, baseline, row)}
            lines += [[row, baseline, headings[m], *_difference(found[m])] for m in headings if m in found]
    claims = [f"- `{row}`: {claim}" for row, claim in results.claims.items() if results.of_row(row)]
    parts = ["What the rows test against their baselines:", "\n".join(claims)] if claims else []
    if lines:
        columns = ["row", "baseline", "metric", "difference", "95 % interval", "detectable", ""]
        parts += ["Paired differences to the baselines:", table(columns, lines)]
    return parts


def _parts(results: Results) -> list[str]:
    """Families, and prompts whose start is broken, apart: the held-out score and its pass."""
    keys, headings = watched(metric_names(results.cells)), _shown(results)
    by_start = starts(results, keys.passed) if keys.passed else {}
    texts = []
    for what, parts, note in (("family", families(results), MANY), ("start", by_start, CHOSEN)):
        for metric in (key for key in (keys.held_out, keys.passed) if key and parts):
            name = headings.get(metric, metric)
            texts += [f"By {what}, {name}. {note}", table(["row", *_columns(parts)], means_of(results, metric, parts))]
            if lines := differences_of(results, metric, parts):
                texts.append(table(["row - baseline", *_columns(parts)], lines))
    return texts


def _columns(parts: Parts) -> list[str]:
    return [f"{name}, {len(prompts)}" for name, prompts in parts.items()]


def _costs(results: Results, rows: list[str]) -> list[str]:
    """What rows spent on training and before."""
    columns = ["row", *(name.replace("_", " ").replace("mib", "MiB") for name in SPENT)]
    trained = [row for row in rows if results.of_row(row)[0].kind == "objective"]
    used = [row for row in rows if any(vars(cell.before).values() for cell in results.of_row(row))]
    parts = []
    if trained:
        lines = [_spent(row, results.of_row(row), "spent") for row in trained]
        parts += ["Spent on training, means over seeds:", table(columns, lines)]
    if used:
        lines = [_spent(row, results.of_row(row), "before") for row in used]
        parts += ["Spent before, on teachers and buffers that were made for the row:", table(columns, lines)]
    return parts


def _with_interval(mean: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{mean:.3f}" + ("" if math.isnan(low) else f" ({low:.3f} .. {high:.3f})")


def _spent(row: str, cells: list[Cell], when: str) -> list[str]:
    means = (sum(getattr(getattr(cell, when), name) for cell in cells) / len(cells) for name in SPENT)
    return [row, *(f"{mean:.0f}" for mean in means)]


def _falls(falls: dict[str, Any], perturbations: dict[str, dict[str, float]]) -> str:
    passed = watched(dict.fromkeys(name for values in perturbations.values() for name in values)).passed
    lines = []
    for row, fall in falls.items():
        low, high = fall["interval"]
        share = perturbations.get(row, {}).get(passed)
        cells = [f"{fall['mean']:.3f} ({low:.3f} .. {high:.3f})", "" if share is None else f"{share:.3f}"]
        lines.append([row, *cells, "yes" if fall["separated"] else "no"])
    return table(["clips", "the auditor falls by", "passed", "separated"], lines)


def _probe(probe: dict[str, Any]) -> str:
    lines = []
    for reward, found in probe.items():
        sides = (found["before"], found["after"])
        judges = [judge for judge in ("reward", "auditor", "passed") if judge in sides[0]]
        moved = [" to ".join(f"{side[judge]:.3f}" for side in sides) for judge in judges]
        moved += [""] * (3 - len(moved))  # earlier versions did not ask for the pass
        low, high = found["interval"]
        separated = "yes" if found["separated"] else "no"
        lines.append([reward, *moved, f"{found['excess']:+.3f} ({low:+.3f} .. {high:+.3f})", separated])
    columns = ["reward", "that reward", "auditor", "auditor, passed", "gain beyond the auditor's", "separated"]
    return table(columns, lines)
