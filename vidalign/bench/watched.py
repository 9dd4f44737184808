"""Which scores stand for a benchmark: the held-out one with its pass, and that of the rewards that are trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vidalign import registry
from vidalign.errors import UserError
from vidalign.evaluation.metrics.base import Metric


@dataclass(frozen=True)
class Watched:
    """Names METRIC/VALUE; empty where no metric is of that kind."""

    held_out: str = ""
    trained: str = ""
    passed: str = ""
    """Share of the clips that the held-out judge passes; rewards can rise while it falls."""


def watched(names: Iterable[str]) -> Watched:
    """Of either kind, held out and trained, the first ``composite``, or where there is none the first value."""
    held_out: list[str] = []
    trained: list[str] = []
    for name in names:
        kind = metric_kind(name.partition("/")[0])
        (trained if kind is not None and kind.trained else held_out).append(name)
    passed = next((name for name in held_out if name.endswith("/pass")), "")
    return Watched(_standing(held_out), _standing(trained), passed)


def shown(names: Iterable[str]) -> dict[str, str]:
    """Headings of the values METRIC/VALUE that tables show, by name: those that the metrics give a heading, else the
    composite and the pass, else the first value."""
    by_metric: dict[str, list[str]] = {}
    for name in names:
        by_metric.setdefault(name.partition("/")[0], []).append(name)
    headings: dict[str, str] = {}
    for metric, values in by_metric.items():
        kind = metric_kind(metric)
        named = kind.shown if kind is not None else {}
        usual = [v for v in values if v.partition("/")[2] in ("composite", "pass")] or values[:1]
        own = {f"{metric}/{value}": heading for value, heading in named.items() if f"{metric}/{value}" in values}
        headings |= own or {name: name.replace("/", ", ") for name in usual}
    return headings


def _standing(names: list[str]) -> str:
    return next((name for name in names if name.endswith("/composite")), names[0] if names else "")


def metric_kind(name: str) -> type[Metric] | None:
    """The class of a metric; None where it is a plugin that is not installed here."""
    try:
        kind: type[Metric] = registry.get("metrics", name)
    except UserError:
        return None
    return kind
