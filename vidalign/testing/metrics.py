"""The promises of a metric: a name, a version, and values one an item, whatever the batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from vidalign import registry
from vidalign.asked import rate_for
from vidalign.evaluation.metrics.base import Metric
from vidalign.recipe.plugins import make
from vidalign.testing.judges import Items, check_items, world_clips, world_texts
from vidalign.testing.plugins import broken, check_config, lent

FPS = 8.0
"""Frame rate of the clips, for a metric that asks for one."""
ITEMS = {
    "clips": world_clips,
    "seeds": lambda: world_clips(seeds=3),
    "long": lambda: world_clips(frames=24),
    "answers": world_texts,
}
"""What is judged by default."""


def check_metric(
    metric: type[Metric] | str,
    settings: Mapping[str, Any] | None = None,
    *,
    items: tuple[Any, list[Any]] | None = None,
    failing: tuple[Any, Any] | None = None,
) -> None:
    """Try the promises of a metric; raises `AssertionError` with a sentence for the first that is broken.

    metric: a class or a registered name. settings: those of its `Config`. items: what it judges, clips
    ``[S * N, F, 3, H, W]`` in [0, 1], seed after seed (S = 1 unless it judges ``seeds``), or N texts, and N prompts,
    three or more; unless given, those of the embedded worlds. failing: an output with its prompt that cannot be judged;
    unless given, the last item as a clip of NaN, or as an example without an answer.
    """
    with lent("metrics", metric) as name:
        kind = registry.get("metrics", name)
        check_config(name, kind)
        if kind.name != name or not isinstance(kind.version, str) or not kind.version:
            broken(name, f"is called {kind.name!r} in version {kind.version!r}: results are compared by both")
        if kind.judges not in ITEMS:
            broken(name, f"judges {kind.judges!r}: a metric judges one of {', '.join(ITEMS)}")
        made = make("metrics", name, settings, name)
        judged = Items(*items, seeds=len(items[0]) // len(items[1])) if items else ITEMS[kind.judges]()
        known = rate_for(made, "metric", name, FPS)
        judge = made.grade if kind.judges == "answers" else partial(made.score, **known)
        values = check_items(name, judge, judged, failing)
        if all(value.isnan().all() for value in values.values()):
            broken(name, f"judges none of {len(judged)} items: give it some that it can judge")
        series = [key for key, value in values.items() if value.ndim > (2 if kind.judges == "long" else 1)]
        if series:
            broken(
                name,
                f"returns shape {tuple(values[series[0]].shape)} under {series[0]!r}: series are for judges = 'long'",
            )
