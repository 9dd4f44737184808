"""Validation of the metrics of a video world: corrupted ground truth, and an adversary on one reward alone.

`examine` returns ``perturbations``: the mean of every metric over ground-truth clips corrupted in each way of the
world's table. ``falls``: by row, how far the auditor's composite falls below that of the same clips intact, with a 95 %
interval over clips. ``hacking_probe``: by reward, that reward and the held-out auditor after Adam on the pixels, beside
their values on the ground truth. The auditor separates the adversary when the reward gains more than the auditor, with
a 95 % interval over clips that excludes zero.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vidalign.engine.rng import generator
from vidalign.evaluation.intervals import estimate
from vidalign.evaluation.judging import scored

if TYPE_CHECKING:
    from vidalign.bench.sections import HealthConfig
    from vidalign.evaluation.metrics.base import Metric

FRAMES = 12


def _part(world: str, name: str) -> Any:
    """A module of a world: ``auditor``, ``captions``, ``perturbations``, ``renderer`` or ``scorer``."""
    return importlib.import_module(f"vidalign.worlds.{world}.{name}")


def rewards(world: str) -> tuple[str, ...]:
    """The trained rewards of a world."""
    return tuple(_part(world, "scorer").SCORES[:3])


def examine(
    world: str, prompts: Sequence[str], metrics: Sequence[Metric], settings: HealthConfig
) -> dict[str, Any] | None:
    """Both examinations on held-out captions; None without captions or when a protocol turns them off.

    world: ``video`` or ``events``, the name of its package.
    """
    captions = [prompt for prompt in prompts if _part(world, "captions").is_caption(prompt)]
    if not captions or not settings.clips:
        return None
    corrupted = [captions[n % len(captions)] for n in range(settings.clips)]
    table, audited = {}, {}
    metrics = [metric for metric in metrics if metric.judges == "clips"]
    perturbations = _part(world, "perturbations")
    for row, clips, prompts in perturbations.table(corrupted, FRAMES, generator(0, "perturbations", 0)):
        values = [scored(metric, clips, prompts, len(prompts)) for metric in metrics]
        table[row] = {name: float(v.nanmean()) for scores in values for name, v in scores.items()}
        audited[row] = _part(world, "auditor").audit(clips, prompts)["composite"]
    falls = {row: _fall(audited[perturbations.ROWS[0]] - scores) for row, scores in list(audited.items())[1:]}
    attacked = [captions[n % len(captions)] for n in range(settings.probe_clips)]
    probe = {reward: hack(world, reward, attacked, settings.probe_steps) for reward in rewards(world) if attacked}
    return {"perturbations": table, "falls": falls, "hacking_probe": probe}


def _fall(fall: torch.Tensor) -> dict[str, Any]:
    """Mean of a fall ``[B]``, its interval, and whether that is above zero."""
    low, high = estimate(fall).interval
    return {"mean": float(fall.mean()), "interval": [low, high], "separated": low > 0}


def hack(world: str, reward: str, captions: list[str], steps: int) -> dict[str, Any]:
    """Raise one reward by the pixels, from clips that stand still; means of reward, auditor and its pass.

    ``excess``: gain of the reward minus gain of the auditor's composite, with its 95 % interval over clips.
    """
    truth = _part(world, "renderer").clips(captions, FRAMES, generator=generator(0, "truth", 0))
    start = frozen(truth)
    pixels = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([pixels], lr=0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        score = _part(world, "scorer").score(pixels.clamp(0, 1), captions)[reward]
        (-score.clamp(min=1e-4).log().sum()).backward()
        optimiser.step()
    stages = {"before": start, "after": pixels.detach().clamp(0, 1), "ground_truth": truth}
    scores = {name: _judged(world, reward, clips, captions) for name, clips in stages.items()}
    before, after = scores["before"], scores["after"]
    excess = (after["reward"] - before["reward"]) - (after["auditor"] - before["auditor"])
    low, high = estimate(excess).interval
    means = {name: {who: float(values.mean()) for who, values in one.items()} for name, one in scores.items()}
    return {**means, "excess": float(excess.mean()), "interval": [low, high], "separated": low > 0, "steps": steps}


def frozen(clips: torch.Tensor) -> torch.Tensor:
    """First frames standing still, with a little noise: something for every reward to repair."""
    still = clips[:, :1].expand_as(clips)
    return (still + 0.05 * torch.randn(clips.shape, generator=generator(0, "adversary", 0))).clamp(0.02, 0.98)


def _judged(world: str, reward: str, clips: torch.Tensor, captions: list[str]) -> dict[str, torch.Tensor]:
    """The reward ``[B]``, the auditor's composite and whether it passes the clip."""
    with torch.no_grad():
        audited = _part(world, "auditor").audit(clips, captions)
        trained = _part(world, "scorer").score(clips, captions)[reward]
    return {"reward": trained, "auditor": audited["composite"], "passed": audited["pass"]}
