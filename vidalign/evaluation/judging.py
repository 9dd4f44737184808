"""Outputs of a student for prompts, the same noise for every student, and what a metric says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from vidalign.asked import rate_for
from vidalign.deferred import without_gradient
from vidalign.engine.rng import generator
from vidalign.errors import PluginError
from vidalign.evaluation.metrics.base import Metric
from vidalign.guest import guest, is_foreign
from vidalign.rewards.calls import NUMBERS, as_numbers, kind_of

BATCH = 32
"""Outputs generated at once."""
Generate = Callable[[list[Any], list[torch.Generator]], Any]
"""Prompts and one generator each to clips ``[B, F, 3, H, W]`` in [0, 1], or to B texts."""


@without_gradient
def outputs_of(generate: Generate, prompts: Sequence[Any], seed: int, purpose: str = "evaluation") -> Any:
    """One clip ``[P, F, 3, H, W]`` (on the CPU) or text a prompt. The noise depends on seed and prompt number only."""
    parts = [outputs for _, outputs in batches(generate, prompts, seed, purpose)]
    if torch.is_tensor(parts[0]):
        return torch.cat([clips.cpu() for clips in parts])
    return [text for part in parts for text in part]


def batches(
    generate: Generate, prompts: Sequence[Any], seed: int, purpose: str = "evaluation"
) -> Iterator[tuple[list[Any], Any]]:
    """(prompts, outputs where they were made), a batch of prompts at a time; clips are float32 at least."""
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        outputs = generate(part, [generator(seed, purpose, 0, start + n) for n in range(len(part))])
        yield part, outputs.float() if isinstance(outputs, torch.Tensor) else outputs


def scored(metric: Metric, outputs: Any, prompts: Sequence[Any], expected: int) -> dict[str, torch.Tensor]:
    """What a metric says of clips, or of answers to examples, see `checked`."""
    with guest("metric", metric.name, metric):
        if metric.judges == "answers":
            scores = metric.grade(outputs, list(prompts))
        else:
            clips = outputs.cpu()
            known: dict[str, Any] = rate_for(metric, "metric", metric.name, metric.fps)
            scores = metric.score(clips.clone() if is_foreign(metric) else clips, list(prompts), **known)
    return checked(metric, scores, expected)


def checked(metric: Metric, scores: Any, expected: int) -> dict[str, torch.Tensor]:
    """Values by METRIC/NAME; `PluginError` when there is not one for each of `expected` prompts, or a series of other
    than long clips."""
    if not isinstance(scores, Mapping):
        raise PluginError(
            f"the metric {metric.name!r} returned a {type(scores).__name__}",
            where=type(metric).__qualname__,
            why="a metric returns a dict of values by name",
        )
    out = {}
    for name, given in scores.items():
        values = as_numbers(given)
        if values is None:
            raise PluginError(
                f"the metric {metric.name!r} returned {kind_of(given)} under {name!r}",
                where=type(metric).__qualname__,
                why=NUMBERS,
            )
        if values.ndim == 0 or len(values) != expected:
            count = len(values) if values.ndim else "no list of"
            raise PluginError(
                f"the metric {metric.name!r} returned {count} values for {expected} prompts",
                where=type(metric).__qualname__,
            )
        if values.ndim != 1 and not (values.ndim == 2 and metric.judges == "long"):
            raise PluginError(
                f"the metric {metric.name!r} returned {name!r} of shape {list(values.shape)}",
                where=type(metric).__qualname__,
                fix="give one number a clip; series are for `judges = 'long'`",
            )
        out[f"{metric.name}/{name}"] = values.float().cpu()
    return out
