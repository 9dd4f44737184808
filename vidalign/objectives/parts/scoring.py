"""From latents to scores to advantages where candidates of a prompt are compared, with statistics over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vidalign.engine import distributed
from vidalign.losses.advantages import combine, group_advantage, group_statistics
from vidalign.rewards.base import ScoreRequest

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.objectives.base import Experience
    from vidalign.students.video import VideoStudent

    Ctx = TrainContext[VideoStudent]

ZERO_SPREAD = 1e-6
"""A group whose combined reward has a standard deviation below it teaches nothing."""


@dataclass
class Advantages:
    """What the rewards say about this rank's P prompts with G candidates each."""

    advantage: torch.Tensor
    """``[P, G]``, 0 where a reward failed."""
    has_signal: torch.Tensor
    """``[world size, P]``: which groups of every rank have a spread that is signal; the others have advantage 0."""
    scores: dict[str, torch.Tensor]
    """What every reward says of all candidates, ``[world size, P, G]``, of one that learns over the mean of the group;
    NaN where it failed."""
    metrics: dict[str, float] = field(default_factory=dict)


def request_groups(
    ctx: Ctx,
    latents: torch.Tensor,
    prompts: list[str],
    history: torch.Tensor | None = None,
    *,
    first_frame: int = 0,
) -> tuple[ScoreRequest, dict[str, float]]:
    """What is to be judged of latents ``[P * G, F, C, H, W]``, candidates of a prompt adjacent, and what to log.

    prompts: P of them. history: latents ``[P, f, C, H, W]`` before these, not scored: a codec that remembers needs
    them. first_frame: how many frames of the video come before.
    """
    clips = ctx.decode(latents, history)
    group = torch.arange(len(prompts)).repeat_interleave(len(clips) // len(prompts))
    motion = float((clips[:, 1:] - clips[:, :-1]).abs().mean())
    return ScoreRequest(clips, prompts, group, first_frame), {"health/motion/mean": motion}


def grouped_scores(ctx: Ctx, data: Experience) -> dict[str, torch.Tensor]:
    """Scores ``[P, G]`` by reward of an experience that was judged; a few of the clips are logged."""
    if data.request is not None:
        ctx.show(data.request.clips, data.request.prompt_of_clip, data.scores)
    return {name: value.view(len(data.prompts), -1) for name, value in data.scores.items()}


def compute_advantages(ctx: Ctx, scores: dict[str, torch.Tensor], *, combination: str, normalise: str) -> Advantages:
    """Advantages of scores ``[P, G]`` by reward; statistics are those of the prompts of all ranks together.

    combination: ``whitened`` or ``raw_sum``, see `combine`. normalise: see `group_advantage`. A reward that learns is
    comparable inside a prompt only: the mean of the group is taken off before anything spans prompts.
    """
    prompts, size = next(iter(scores.values())).shape
    everyone, group = gather_scores(ctx, scores)
    compared = {
        name: value - group_statistics(value, group)[0][group] if name in _learned(ctx) else value
        for name, value in everyone.items()
    }
    reward = combine(compared, ctx.reward_weights, whitened=combination == "whitened")
    advantage = group_advantage(reward, group, normalise=normalise)
    total = combine(everyone, ctx.reward_weights, whitened=False) / sum(ctx.reward_weights.values())
    has_signal = ctx.signal.has_signal(group_statistics(total, group)[1], ",".join(sorted(ctx.reward_weights)))
    has_signal &= group_statistics(reward, group)[1] > ZERO_SPREAD
    advantage = advantage * has_signal[group]
    metrics = score_metrics({"": total, **everyone}, group) | advantage_metrics(reward, advantage, group)
    metrics["health/low_spread_groups/mean"] = float((~has_signal).float().mean())
    mine = advantage.view(ctx.world_size, prompts, size)[distributed.rank()]
    gathered = {name: value.view(ctx.world_size, prompts, size) for name, value in compared.items()}
    return Advantages(mine, has_signal.view(ctx.world_size, prompts), gathered, metrics)


def group_weights(judged: Advantages) -> torch.Tensor:
    """The weight of each of this rank's groups ``[P]``: 0 without signal, else so that the mean over all groups of all
    ranks is the mean over those that have it.

    Groups without signal are predicted like the others: their number is not known beforehand, and a step shall cost
    what its recipe says.
    """
    groups = judged.has_signal
    return groups[distributed.rank()].float() * (groups.numel() / max(1, int(groups.sum())))


def _learned(ctx: Ctx) -> set[str]:
    return {reward.name for reward in ctx.rewards.trainable} if ctx.rewards is not None else set()


def gather_scores(ctx: Ctx, scores: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Scores ``[N]`` of all ranks by reward and their groups ``[N]``, from this rank's scores ``[P, G]``."""
    prompts, size = next(iter(scores.values())).shape
    group = torch.arange(prompts * ctx.world_size).repeat_interleave(size)
    return {name: ctx.gather(value.flatten()) for name, value in scores.items()}, group


def score_metrics(scores: dict[str, torch.Tensor], group: torch.Tensor) -> dict[str, float]:
    """What to log of scores ``[N]`` by reward; the name '' is all rewards together."""
    metrics = {}
    for name, value in scores.items():
        prefix = f"reward/{name}/" if name else "reward/"
        metrics[f"{prefix}mean"] = float(value.nanmean())
        metrics[f"{prefix}group_std"] = float(group_statistics(value, group)[1].mean())
    return metrics


def advantage_metrics(reward: torch.Tensor, advantage: torch.Tensor, group: torch.Tensor) -> dict[str, float]:
    """What to log of advantages ``[N]`` and of the reward that they come from."""
    spread = group_statistics(reward, group)[1]
    return {
        "health/reward_nan/mean": float((~reward.isfinite()).float().mean()),
        "health/zero_std_groups/mean": float((spread <= ZERO_SPREAD).float().mean()),
        "objective/advantage/max": float(advantage.abs().max()),
    }
