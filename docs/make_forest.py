"""Writes the README's chart: the held-out gain of every method with its 95 % interval, as an SVG.

    python docs/make_forest.py

Reads benchmarks/results/all_objectives.json. Rows that fall out of the picture are drawn as an arrow with their number.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from vidalign.bench.comparison import Difference, compare
from vidalign.bench.protocol import REFERENCES
from vidalign.bench.results import Results, read_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "all_objectives.json"
OUT = ROOT / "docs" / "images" / "forest.svg"
METRIC = "world_auditor/composite"
LOW, HIGH = -0.10, 0.26
"""Ends of the axis."""
NAMES, WIDTH, NUMBERS, LINE, TOP, SIZE = 190, 360, 190, 22, 54, 13
"""Pixels: column of names, plot, column of numbers, height of a row, head, and font."""
MINE = {"afd", "ar_copo", "ar_copo_semi", "astrolabe", "astrolabe_selective", "astrolabe_discriminator"}
"""Rows of the papers on video; hollow marks are baselines, controls, and `dopd`, whose video form is ours."""


def gains(results: Results) -> dict[str, Difference]:
    """Each trained row against the start weights, the largest gain first."""
    rows = [name for name in results.row_names() if name not in REFERENCES and results.of_row(name)]
    found = {name: next(d for d in compare(results, "base", name) if d.metric == METRIC) for name in rows}
    return dict(sorted(found.items(), key=lambda item: -item[1].difference))


def x_of(value: float) -> float:
    """Pixel of a value on the axis, at its end where the value is beyond it."""
    return NAMES + (min(max(value, LOW), HIGH) - LOW) / (HIGH - LOW) * WIDTH


def text(x: float, y: float, content: str, anchor: str = "start", more: str = "") -> str:
    """A text element."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#1b1f24", width: float = 1) -> str:
    """A line element."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"/>'


def drawn(name: str, gain: Difference, y: float) -> list[str]:
    """One row: its name, interval, mark and numbers."""
    low, high = gain.interval
    number = f"{gain.difference:+.3f} ({low:+.3f} .. {high:+.3f})"
    parts = [text(NAMES - 10, y + 4, name, "end"), text(NAMES + WIDTH + 10, y + 4, number)]
    if gain.difference < LOW:
        return [*parts, text(x_of(LOW) + 2, y + 5, "\N{BLACK LEFT-POINTING TRIANGLE} far below", "start")]
    fill = "#0b63a5" if name in MINE else "#ffffff"
    mark = (
        f'<circle cx="{x_of(gain.difference):.1f}" cy="{y}" r="4.5" fill="{fill}" stroke="#0b63a5" stroke-width="2"/>'
    )
    return [*parts, line(x_of(low), y, x_of(high), y, "#0b63a5", 2), mark]


def chart(results: Results) -> str:
    """The whole picture."""
    rows = gains(results)
    height, bottom = TOP + LINE * len(rows) + 56, TOP + LINE * len(rows)
    width = NAMES + WIDTH + NUMBERS
    note = "Filled: AFD, AR-CoPO, Astrolabe. Hollow: video DOPD (ours), baselines, controls."
    if results.outdated_since:
        note += f" Outdated since commit {results.outdated_since}."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" font-family="sans-serif" font-size="{SIZE}" fill="#1b1f24">',
        "<title>Gain of the held-out auditor over the start weights, by method</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(10, 22, "Gain of the held-out auditor over the start weights, 95 % intervals", more='font-weight="bold"'),
        text(10, 42, "64,000 student forwards each, 3 training seeds, 32 held-out prompts"),
    ]
    for tick in (-0.1, 0.0, 0.1, 0.2):
        parts.append(line(x_of(tick), TOP, x_of(tick), bottom, "#1b1f24" if tick == 0 else "#d0d7de"))
        parts.append(text(x_of(tick), bottom + 16, f"{tick:+.1f}" if tick else "0", "middle"))
    for index, (name, gain) in enumerate(rows.items()):
        parts += drawn(name, gain, TOP + LINE * index + LINE / 2)
    return "\n".join([*parts, text(10, height - 12, note), "</svg>"]) + "\n"


if __name__ == "__main__":
    OUT.write_text(chart(read_results(RESULTS)), encoding="utf-8")
    print(OUT)
