"""Parts of the prompts that tables report apart: families, and prompts whose start is broken.

Every part has the columns of a table; its rows are means, or the differences of the trained rows to their baselines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vidalign.bench.comparison import HELD_OUT, Difference, baselines_of, cells_of, difference, paired, values_of
from vidalign.bench.results import Results
from vidalign.bench.sections import BASE
from vidalign.report.model import LEAST_PROMPTS

Parts = Mapping[str, set[int]]
"""Numbers of prompts by the name of the part."""
MANY = f"No interval below {LEAST_PROMPTS} prompts. Of many intervals one in twenty excludes zero by chance."
CHOSEN = (
    "Broken: no clip of the start passes. The start's own clips choose, so by chance alone a broken prompt rises and a "
    "whole one falls, in every row alike."
)


def families(results: Results, split: str = HELD_OUT) -> dict[str, set[int]]:
    """Numbers of a split's prompts by family, in the order of the prompts; nothing where there are not two families."""
    found: dict[str, set[int]] = {}
    for number in _numbers(results, split):
        if number < len(results.families):
            found.setdefault(results.families[number], set()).add(number)
    return found if len(found) > 1 else {}


def starts(results: Results, passed: str, split: str = HELD_OUT) -> dict[str, set[int]]:
    """Numbers of the prompts whose start is broken (no clip of the start weights has `passed`) and of the others.

    Nothing where not both occur, or where the start was not judged by it; see `CHOSEN`.
    """
    cells = results.of_row(BASE)
    values = cells[0].metrics.get(passed, []) if cells else []
    known = [n for n in _numbers(results, split) if n < len(values)]
    found = {"broken": {n for n in known if values[n] <= 0}, "whole": {n for n in known if values[n] > 0}}
    return found if all(found.values()) else {}


def _numbers(results: Results, split: str) -> range:
    """Numbers of a split's prompts."""
    first, last = next((cell.prompt_split[split] for cell in results.cells if split in cell.prompt_split), (0, 0))
    return range(first, last)


def means_of(results: Results, metric: str, parts: Parts, split: str = HELD_OUT) -> list[list[str]]:
    """One line a row: its name and the mean of a metric in every part."""
    lines = []
    for row in results.row_names():
        cells = results.of_row(row)
        means = [float(values_of(cells, metric, split, among).nanmean()) for among in parts.values()]
        if not all(map(math.isnan, means)):
            lines.append([row, *("" if math.isnan(mean) else f"{mean:.3f}" for mean in means)])
    return lines


def differences_of(results: Results, metric: str, parts: Parts, split: str = HELD_OUT) -> list[list[str]]:
    """One line a trained row: its name and baseline, and in every part the difference of a metric with its interval."""
    lines = []
    for row, baseline in baselines_of(results).items():
        first, second = paired(cells_of(results, baseline), cells_of(results, row), baseline, row)
        found = [difference(first, second, metric, split, among) for among in parts.values()]
        if any(found):
            lines.append([f"{row} - {baseline}", *("" if one is None else _shown(one) for one in found)])
    return lines


def _shown(one: Difference) -> str:
    low, high = one.interval
    few = one.prompts < LEAST_PROMPTS or math.isnan(low)  # an interval of three prompts says nothing
    return f"{one.difference:+.3f}" + ("" if few else f" ({low:+.3f} .. {high:+.3f})")
