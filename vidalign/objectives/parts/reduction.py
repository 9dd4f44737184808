"""Metrics of micro-batches and processes to one number each, by the reduction that their names carry."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from vidalign.engine import distributed

if TYPE_CHECKING:
    from vidalign.objectives.base import LossOut


def weighted_metrics(out: LossOut, share: float) -> dict[str, tuple[float, float]]:
    """(weight, value) of what to log of a micro-batch that is `share` of the batch."""
    metrics = {"objective/loss/mean": out.loss.detach(), **out.metrics}
    pairs = {name: (float(out.counts.get(name, share)), float(value)) for name, value in metrics.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] > 0}


def reduce_metrics(gathered: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """(weight, value) pairs of all micro-batches and ranks to one number: the largest of ``.../max``, else the mean.

    NaN when a part is not finite: the mean of the rest would look healthy.
    """
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for part in distributed.all_gather_object(dict(gathered)):
        for name, values in part.items():
            pairs[name] += values
    result = {}
    for name, values in pairs.items():
        if not all(math.isfinite(v) for _, v in values):
            result[name] = math.nan
        elif name.endswith("/max"):
            result[name] = max(v for _, v in values)
        else:
            result[name] = sum(w * v for w, v in values) / sum(w for w, _ in values)
    return result
