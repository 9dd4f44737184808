"""Judging one source of clips by a protocol: the same prompts and the same noise for every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidalign.bench.metrics.base import Metric
from vidalign.engine.rng import generator
from vidalign.errors import PluginError
from vidalign.guest import guest, is_foreign
from vidalign.owner import beside
from vidalign.rewards.calls import NUMBERS, as_numbers, kind_of

if TYPE_CHECKING:
    from vidalign.bench.protocol import Protocol

BATCH = 32
"""Clips generated at once."""
Generate = Callable[[list[str], list[torch.Generator]], torch.Tensor]


@dataclass
class Source:
    """Where the clips of a row come from."""

    clips: Generate
    """Prompts and one generator each to clips ``[B, F, 3, H, W]`` in [0, 1]."""
    long: Generate | None = None
    """The same for long clips; None when it cannot make them."""


@dataclass
class Judged:
    """Values by METRIC/NAME; prompts in the order of the protocol."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    drift: dict[str, list[float]] = field(default_factory=dict)
    shown: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """First clips of the first seed, ``[P_shown, F, 3, H, W]``."""


def judge(source: Source, protocol: Protocol, metrics: Iterable[Metric]) -> Judged:
    """Generate and judge everything that the protocol asks for."""
    evaluation, prompts, metrics = protocol.evaluation, protocol.all_prompts, list(metrics)
    out, kept = Judged(), []
    sums: dict[str, list[torch.Tensor]] = {}
    together = [metric for metric in metrics if metric.judges == "seeds"]
    for seed in evaluation.seeds:
        clips = make_clips(source.clips, prompts, seed)
        if seed == evaluation.seeds[0]:
            out.shown = clips[: evaluation.shown].clone()
        for metric in (m for m in metrics if m.judges == "clips"):
            for name, values in scored(metric, clips, prompts, len(prompts)).items():
                sums.setdefault(name, []).append(values)
        kept += [clips] if together else []
    out.metrics = {name: torch.stack(values).nanmean(0).tolist() for name, values in sums.items()}
    for metric in together:
        found = scored(metric, torch.cat(kept), prompts * len(evaluation.seeds), len(prompts))
        out.metrics |= {name: values.tolist() for name, values in found.items()}
    if evaluation.long_factor and source.long is not None:
        _judge_long(source.long, protocol, [m for m in metrics if m.judges == "long"], out)
    return out


def judge_few(generate: Generate, protocol: Protocol, metrics: Iterable[Metric]) -> dict[str, float]:
    """Means over a few held-out prompts and one seed, for the curve during training."""
    prompts = protocol.held_out[: protocol.evaluation.curve_prompts]
    clips = make_clips(generate, prompts, protocol.evaluation.seeds[0])
    found = [scored(metric, clips, prompts, len(prompts)) for metric in metrics if metric.judges == "clips"]
    return {name: float(values.nanmean()) for values_of in found for name, values in values_of.items()}


@torch.no_grad()
def make_clips(generate: Generate, prompts: Sequence[str], seed: int, purpose: str = "evaluation") -> torch.Tensor:
    """One clip a prompt, on the CPU; the noise depends on seed and prompt number only."""
    return torch.cat([clips.cpu() for _, clips in clip_batches(generate, prompts, seed, purpose)])


def clip_batches(
    generate: Generate, prompts: Sequence[str], seed: int, purpose: str = "evaluation"
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """The clips of `make_clips` where they were made, a batch of prompts at a time."""
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        yield part, generate(part, [generator(seed, purpose, 0, start + n) for n in range(len(part))]).float()


def scored(metric: Metric, clips: torch.Tensor, prompts: Sequence[str], expected: int) -> dict[str, torch.Tensor]:
    """What a metric says of clips, see `checked`."""
    with guest("metric", metric.name, metric):
        found = metric.score(clips.clone() if is_foreign(metric) else clips, list(prompts))
    return checked(metric, found, expected)


def checked(metric: Metric, found: Any, expected: int) -> dict[str, torch.Tensor]:
    """Values by METRIC/NAME; `PluginError` when there is not one for each of `expected` prompts, or a series of other
    than long clips."""
    if not isinstance(found, Mapping):
        raise PluginError(
            f"the metric {metric.name!r} returned a {type(found).__name__}", where=type(metric).__qualname__,
            why="a metric returns a dict of values by name",
        )  # fmt: skip
    out = {}
    for name, given in found.items():
        values = as_numbers(given)
        if values is None:
            raise PluginError(
                f"the metric {metric.name!r} returned {kind_of(given)} under {name!r}",
                where=type(metric).__qualname__, why=NUMBERS,
            )  # fmt: skip
        if values.ndim == 0 or len(values) != expected:
            count = len(values) if values.ndim else "no list of"
            raise PluginError(
                f"the metric {metric.name!r} returned {count} values for {expected} prompts",
                where=type(metric).__qualname__,
            )
        if values.ndim != 1 and not (values.ndim == 2 and metric.judges == "long"):
            raise PluginError(
                f"the metric {metric.name!r} returned {name!r} of shape {list(values.shape)}",
                where=type(metric).__qualname__, fix="give one number a clip; series are for `judges = 'long'`",
            )  # fmt: skip
        out[f"{metric.name}/{name}"] = values.float().cpu()
    return out


def save_clips(path: Path, clips: torch.Tensor) -> None:
    """Clips ``[P, F, 3, H, W]`` in [0, 1] as uint8 ``[P, F, H, W, 3]`` under the key ``clips``, whole or not at all."""
    pixels = (clips.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    partial = beside(path)
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, clips=pixels)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _judge_long(generate: Generate, protocol: Protocol, metrics: list[Metric], out: Judged) -> None:
    """Long clips of the first prompts, one seed; a series over chunks gives drift and, as a metric, its change."""
    if not metrics:
        return
    prompts = protocol.held_out[: protocol.evaluation.long_prompts]
    clips = make_clips(generate, prompts, protocol.evaluation.seeds[0], "long evaluation")
    rest = [float("nan")] * (len(protocol.all_prompts) - len(prompts))
    for metric in metrics:
        for name, values in scored(metric, clips, prompts, len(prompts)).items():
            if values.ndim == 2:
                out.drift[name] = values.nanmean(0).tolist()
                values = values[:, -1] - values[:, 0]
            out.metrics[name] = values.tolist() + rest


def as_source(generate_for: Callable[[int], Any], frames: int, factor: int, *, long: bool = True) -> Source:
    """A source from a function that makes a generator for a number of frames."""
    return Source(generate_for(frames), generate_for(frames * factor) if long and factor else None)
