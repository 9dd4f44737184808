"""Judging one source of clips by a protocol: the same prompts and the same noise for every row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidalign.evaluation.judging import Generate, outputs_of, scored
from vidalign.evaluation.metrics.base import Metric
from vidalign.owner import replacing

if TYPE_CHECKING:
    from vidalign.bench.protocol import Protocol


EACH = ("clips", "answers")
"""What a metric judges that is called for every seed by itself."""


@dataclass
class Source:
    """Where the clips or answers of a row come from."""

    outputs: Generate
    """Of prompts, with one generator each."""
    long: Generate | None = None
    """The same for long clips; None when it makes none."""


@dataclass
class Judged:
    """Values by METRIC/NAME; prompts in the order of the protocol."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    drift: dict[str, list[float]] = field(default_factory=dict)
    shown: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """First clips of the first seed, ``[P_shown, F, 3, H, W]``."""


def judge(source: Source, protocol: Protocol, metrics: Iterable[Metric]) -> Judged:
    """Generate and judge everything that the protocol sets."""
    evaluation, asked, metrics = protocol.evaluation, protocol.asked, list(metrics)
    out = Judged()
    clips: dict[int, torch.Tensor] = {}  # by seed
    sums: dict[str, list[torch.Tensor]] = {}
    together = [metric for metric in metrics if metric.judges == "seeds"]
    for seed in evaluation.seeds:
        outputs = outputs_of(source.outputs, asked, seed)
        if seed == evaluation.seeds[0] and torch.is_tensor(outputs):
            out.shown = outputs[: evaluation.shown].clone()
        for metric in (m for m in metrics if m.judges in EACH):
            for name, values in scored(metric, outputs, asked, len(asked)).items():
                sums.setdefault(name, []).append(values)
        clips |= {seed: outputs} if together else {}
    out.metrics = {name: torch.stack(values).nanmean(0).tolist() for name, values in sums.items()}
    for metric in together:
        out.metrics |= _judge_together(metric, source.outputs, asked, evaluation.seeds, clips)
    if evaluation.long_factor and source.long is not None:
        _judge_long(source.long, protocol, [m for m in metrics if m.judges == "long"], out)
    return out


def _judge_together(
    metric: Metric, generate: Generate, asked: list[Any], seeds: list[int], clips: dict[int, torch.Tensor]
) -> dict[str, list[float]]:
    """One that compares the clips of a prompt; those of further seeds than the evaluation's are added to `clips`."""
    count, each = metric.sampled(len(asked), len(seeds))
    chosen = [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + each)][:each]
    for seed in chosen:
        if seed not in clips or len(clips[seed]) < count:
            clips[seed] = outputs_of(generate, asked[:count], seed)
    together = torch.cat([clips[seed][:count] for seed in chosen])
    scores = scored(metric, together, asked[:count] * each, count)
    rest = [float("nan")] * (len(asked) - count)
    return {name: values.tolist() + rest for name, values in scores.items()}


def judge_few(generate: Generate, protocol: Protocol, metrics: Iterable[Metric]) -> dict[str, float]:
    """Means over a few held-out prompts and one seed, for the curve during training."""
    few = protocol.asked[: min(protocol.evaluation.curve_prompts, len(protocol.held_out))]
    outputs = outputs_of(generate, few, protocol.evaluation.seeds[0])
    scores = [scored(metric, outputs, few, len(few)) for metric in metrics if metric.judges in EACH]
    return {name: float(values.nanmean()) for values_of in scores for name, values in values_of.items()}


def save_clips(path: Path, clips: torch.Tensor) -> None:
    """Clips ``[P, F, 3, H, W]`` in [0, 1] as uint8 ``[P, F, H, W, 3]`` under the key ``clips``, whole or not at all."""
    pixels = (clips.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, clips=pixels)


def _judge_long(generate: Generate, protocol: Protocol, metrics: list[Metric], out: Judged) -> None:
    """Long clips of the first prompts, one seed; a series over chunks gives drift and, as a metric, its change."""
    if not metrics:
        return
    prompts = protocol.held_out[: protocol.evaluation.long_prompts]
    clips = outputs_of(generate, prompts, protocol.evaluation.seeds[0], "long evaluation")
    rest = [float("nan")] * (len(protocol.all_prompts) - len(prompts))
    for metric in metrics:
        for name, values in scored(metric, clips, prompts, len(prompts)).items():
            if values.ndim == 2:
                out.drift[name] = values.nanmean(0).tolist()
                values = values[:, -1] - values[:, 0]
            out.metrics[name] = values.tolist() + rest
