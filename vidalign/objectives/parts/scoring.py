"""From latents to scores to advantages where candidates of a prompt are compared, with statistics over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vidalign.context import shown
from vidalign.engine import distributed
from vidalign.engine.autocast import without_autocast
from vidalign.losses.advantages import combine, group_advantage, group_statistics, reward_weight, weighted_mean
from vidalign.rewards.base import ScoreRequest

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.objectives.base import Experience

ZERO_SPREAD = 1e-6
"""A group whose combined reward has a standard deviation below it teaches nothing."""
ROUNDING = 4 * 2.0**-23
"""Relative spread of scores that differ by their last bits in fp32 alone."""
MOTION = "health/motion/mean"


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


class Judging:
    """What is judged of P prompts with G candidates each, a slice of candidates at a time as they are rolled out.

    Rewards that do not learn begin with a slice while the next one is rolled out, and clips that nobody needs any more
    are freed. history: latents ``[P, f, C, H, W]`` before those of the candidates, not scored: a codec that remembers
    needs them. first_frame: how many frames of the video come before.
    """

    def __init__(
        self,
        ctx: TrainContext,
        prompts: list[str],
        group_size: int,
        history: torch.Tensor | None = None,
        *,
        first_frame: int = 0,
    ) -> None:
        assert ctx.rewards is not None, "an objective that scores declares needs.rewards"
        self.ctx, self.prompts, self.history, self.first_frame = ctx, prompts, history, first_frame
        self.group_index = torch.arange(len(prompts)).repeat_interleave(group_size)
        count = len(self.group_index)
        needed = range(count) if ctx.rewards.trainable else shown(count) if ctx.shows else ()
        self.kept = tuple(needed)
        self._clips: list[torch.Tensor] = []
        self._motion: list[torch.Tensor] = []
        self.ahead = ctx.rewards.ahead(threads=ctx.score_ahead)

    def add(self, rows: slice, latents: torch.Tensor) -> None:
        """The candidates `rows`, whole groups or a part of one, with latents ``[B, F, C, H, W]``.

        A rollout calls it, whose precision is not that of codec and rewards.
        """
        groups = self.group_index[rows]
        past = None if self.history is None else self.history[int(groups[0]) : int(groups[-1]) + 1]
        with without_autocast(latents.device):
            clips = self.ctx.decode(latents, past)
            self._motion += _changes(clips)
            self.ahead.submit(clips, [self.prompts[place] for place in groups.tolist()])
        kept = [row - rows.start for row in self.kept if rows.start <= row < rows.stop]
        self._clips.append(clips if len(kept) == len(clips) else clips[kept])

    def request(self) -> tuple[ScoreRequest, dict[str, float]]:
        """What is to be judged of all slices, and what to log: the mean difference of consecutive frames."""
        clips = self._clips[0] if len(self._clips) == 1 else torch.cat(self._clips)
        kept = None if len(self.kept) == len(self.group_index) else self.kept
        metrics = {MOTION: float(torch.stack(self._motion).mean())}
        request = ScoreRequest(clips, self.prompts, self.group_index, self.first_frame, ahead=self.ahead, kept=kept)
        return request, metrics


def request_groups(
    ctx: TrainContext, latents: torch.Tensor, prompts: list[str]
) -> tuple[ScoreRequest, dict[str, float]]:
    """What is to be judged of finished latents ``[P * G, F, C, H, W]``, candidates of a prompt adjacent, and what to
    log; see `Judging` for those that are still to be rolled out."""
    judging = Judging(ctx, prompts, len(latents) // len(prompts))
    judging.add(slice(0, len(latents)), latents)
    return judging.request()


def motion(clips: torch.Tensor) -> dict[str, float]:
    """What to log of the motion in clips ``[B, F, 3, H, W]``: the mean difference of consecutive frames."""
    return {MOTION: float(torch.stack(_changes(clips)).mean())}


def _changes(clips: torch.Tensor) -> list[torch.Tensor]:
    """Mean difference of consecutive frames, clip by clip: the differences of all of them are as large as they are."""
    return [(clip[1:] - clip[:-1]).abs().mean() for clip in clips]


def grouped_scores(ctx: TrainContext, data: Experience) -> dict[str, torch.Tensor]:
    """Scores ``[P, G]`` by reward of an experience that was judged; a few of the clips are logged."""
    if (request := data.request) is not None:
        rows = list(range(len(request.group_index))) if request.kept is None else list(request.kept)
        of_clip = request.prompt_of_clip
        prompts = [of_clip[row] for row in rows]
        ctx.show(request.clips, prompts, {name: value[rows] for name, value in data.scores.items()})
    return {name: value.view(len(data.prompts), -1) for name, value in data.scores.items()}


def compute_advantages(
    ctx: TrainContext, scores: dict[str, torch.Tensor], *, combination: str, normalise: str
) -> Advantages:
    """Advantages of scores ``[P, G]`` by reward; statistics are those of the prompts of all ranks together.

    combination: ``whitened`` or ``raw_sum``, see `combine`. normalise: see `group_advantage`. A reward that learns is
    comparable inside a prompt only: the mean of the group is taken off before anything spans prompts. Whitened rewards
    weigh alike whatever their scales, so each has a signal floor of its own; raw ones share that of their sum.
    """
    gathered, group_index = gather_scores(ctx, scores)
    compared = {
        name: value - group_statistics(value, group_index)[0][group_index] if name in _learned(ctx) else value
        for name, value in gathered.items()
    }
    whitened = combination == "whitened"
    reward = combine(compared, ctx.reward_weights, whitened=whitened)
    advantage = group_advantage(reward, group_index, normalise=normalise)
    total = weighted_mean(gathered, ctx.reward_weights)
    trained = sorted(name for name in gathered if ctx.reward_weights[name])
    parts = {name: gathered[name] for name in trained} if whitened else {",".join(trained): total}
    judged = keep_signal(ctx, gathered, group_index, advantage, reward=reward, total=total, parts=parts)
    shape = (ctx.world_size, *next(iter(scores.values())).shape)
    judged.scores = {name: value.view(shape) for name, value in compared.items()}
    return judged


def keep_signal(
    ctx: TrainContext,
    scores: dict[str, torch.Tensor],
    group_index: torch.Tensor,
    advantage: torch.Tensor,
    *,
    reward: torch.Tensor,
    total: torch.Tensor,
    parts: Mapping[str, torch.Tensor],
) -> Advantages:
    """Advantages ``[N]`` of all ranks as this rank's, 0 in groups whose spread is no signal, with what to log.

    reward: ``[N]``, what the advantages come from. total: ``[N]``, the weighted score of all rewards, to log. parts:
    ``[N]`` by name, what may have signal on its own scale, each beside its own earlier spreads; a group trains where
    one of them has.
    """
    above = [ctx.signal.has_signal(_spread(part, group_index), name) for name, part in parts.items()]
    has_signal = torch.stack(above).any(0) & (group_statistics(reward, group_index)[1] > ZERO_SPREAD)
    advantage = advantage * has_signal[group_index]
    metrics = score_metrics({"": total, **scores}, group_index) | advantage_metrics(reward, advantage, group_index)
    metrics["health/low_spread_groups/mean"] = float((~has_signal).float().mean())
    has_signal = has_signal.repeat_interleave(ctx.spread).view(ctx.world_size, -1)
    shape = (*has_signal.shape, -1)
    by_rank = {name: value.view(shape) for name, value in scores.items()}
    own = advantage.view(shape)[distributed.rank()]
    return Advantages(own, has_signal, by_rank, metrics)


def _spread(value: torch.Tensor, group_index: torch.Tensor) -> torch.Tensor:
    """The standard deviation ``[P]`` of each group, 0 where it is what rounding makes of equal scores."""
    mean, spread = group_statistics(value, group_index)
    return spread.where(spread > ROUNDING * mean.abs(), 0.0)


def weigh_candidates(data: Experience, judged: Advantages, advantage_clip: float) -> None:
    """Add the reward weight r in [0, 1] and the weight ``signal`` of its group to every candidate ``[N]``; see
    `reward_weight` and `group_weights`."""
    device = data["x0"].device
    data.tensors["reward_weight"] = reward_weight(judged.advantage.flatten(), advantage_clip).to(device)
    data.tensors["signal"] = group_weights(judged).repeat_interleave(data.group_size).to(device)
    data.metrics |= judged.metrics


def group_weights(judged: Advantages) -> torch.Tensor:
    """The weight of each of this rank's groups ``[P]``: 0 without signal, else so that the mean over all groups of all
    ranks is the mean over those that have it.

    Groups without signal are predicted like the others: their number is not known beforehand, and a step shall cost
    what its recipe says.
    """
    groups = judged.has_signal
    return groups[distributed.rank()].float() * (groups.numel() / max(1, int(groups.sum())))


def _learned(ctx: TrainContext) -> set[str]:
    return {reward.name for reward in ctx.rewards.trainable} if ctx.rewards is not None else set()


def gather_scores(ctx: TrainContext, scores: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Scores ``[N]`` of all ranks by reward and their groups ``[N]``, from this rank's scores ``[P, G]``. Ranks
    that share a group are neighbours."""
    prompts, group_size = next(iter(scores.values())).shape
    groups = prompts * ctx.world_size // ctx.spread
    group_index = torch.arange(groups).repeat_interleave(group_size * ctx.spread)
    return {name: ctx.gather(value.flatten()) for name, value in scores.items()}, group_index


def score_metrics(scores: dict[str, torch.Tensor], group_index: torch.Tensor) -> dict[str, float]:
    """What to log of scores ``[N]`` by reward; the name '' is all rewards together."""
    metrics = {}
    for name, value in scores.items():
        prefix = f"reward/{name}/" if name else "reward/"
        metrics[f"{prefix}mean"] = float(value.nanmean())
        metrics[f"{prefix}group_std"] = float(group_statistics(value, group_index)[1].mean())
    return metrics


def advantage_metrics(reward: torch.Tensor, advantage: torch.Tensor, group_index: torch.Tensor) -> dict[str, float]:
    """What to log of advantages ``[N]`` and of the reward that they come from."""
    spread = group_statistics(reward, group_index)[1]
    return {
        "health/reward_nan/mean": float((~reward.isfinite()).float().mean()),
        "health/zero_std_groups/mean": float((spread <= ZERO_SPREAD).float().mean()),
        "objective/advantage/max": float(advantage.abs().max()),
    }
