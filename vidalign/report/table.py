"""The before/after table on the console, from the same rows as the report's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vidalign.report.model import TOO_FEW, TOO_FEW_WHY, EvaluationRow


def evaluation_table(rows: Sequence[EvaluationRow], title: str = "") -> Table:
    """Metric, before, after, difference with its 95 % interval and the detectable one, and what that says: as narrow as
    can be, so that names and verdicts are whole in 80 columns."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=0)
    table.add_column("metric", no_wrap=True)
    for heading in ("before", "after", "change", "95 % interval", "detectable"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", min_width=7)
    colours = {"better": "green", "worse": "red", "unclear": "dim", TOO_FEW: "yellow"}
    for row in rows:
        low, high = row.interval
        table.add_row(
            row.metric,
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"{row.difference:+.3f}",
            f"{low:+.3f} .. {high:+.3f}",
            f"{row.detectable:.3f}" if math.isfinite(row.detectable) else "",
            f"[{colours[row.verdict]}]{row.verdict}[/]",
        )
    if any(row.verdict == TOO_FEW for row in rows):
        table.caption = TOO_FEW_WHY
    return table
