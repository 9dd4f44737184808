"""What objectives share that roll out with `old` and predict their rollouts again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vidalign.errors import UserError
from vidalign.students.video.rollout import RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.objectives.base import PolicyRule
    from vidalign.students.video import VideoStudent
    from vidalign.students.video.rollout import Rollout
    from vidalign.students.video.spec import Sampler

    Ctx = TrainContext[VideoStudent]


def roll_videos(ctx: Ctx, text: torch.Tensor, ids: list[int], size: int) -> Rollout:
    """`size` independent whole videos of each of the texts ``[P, L, D]`` by the old policy, all states recorded."""
    plan = RolloutPlan(prefix=0, branch=ctx.chunks, group_size=size, record=tuple(range(ctx.chunks)))
    noise = ctx.student.draw_noise(plan, ctx.generators("rollout", ids))
    with ctx.policy("old"), ctx.gathered():
        return ctx.student.rollout(text, plan, noise)


def candidate_ids(ids: list[int], size: int) -> torch.Tensor:
    """Numbers ``[P * size]`` of the candidates of the samples `ids`, for the counter RNG of the loss."""
    return torch.tensor(ids).repeat_interleave(size) * size + torch.arange(size).repeat(len(ids))


def old_prediction(
    ctx: Ctx, predict: Callable[[], torch.Tensor], current: torch.Tensor, decay: float | None
) -> torch.Tensor:
    """What the old policy predicts, without gradient. Without decay `after_step` has just set it to the current one:
    the first update needs no forward of its own."""
    if decay == 0 and ctx.update == 0:
        return current.detach()
    with torch.no_grad(), ctx.policy("old"):
        return predict()


def decay_old(ctx: Ctx, decay: float | None) -> None:
    """``old <- d old + (1 - d) current``; None is the schedule ``d = min(0.001 step, 0.5)`` of DiffusionNFT."""
    ctx.policies.ema_update("old", "current", min(0.001 * ctx.step, 0.5) if decay is None else decay)


def old_rule(decay: float | None) -> PolicyRule:
    """The rule of an `old` that `decay_old` moves."""
    return "current" if decay == 0 else "own"


def sampler_levels(
    sampler: Sampler, sigma_max: float = 1.0, sigma_min: float = 0.0, *, first: bool = False
) -> list[float]:
    """The sampler's own noise levels in ``[sigma_min, sigma_max]``, descending; `UserError` when there is none.

    first: those of the chunk that begins the video, which may have a list of its own.
    """
    visited = sampler.steps(first)
    levels = [sigma for sigma in visited if sigma_min <= sigma <= sigma_max]
    if not levels:
        chunk = " in the first chunk" if visited is not sampler.sigmas else ""
        raise UserError(
            f"{sigma_min} to {sigma_max} leaves no noise level to train on{chunk}",
            where="objective.sigma_max",
            why=f"the student's sampler visits {visited}",
            fix="let the range hold one of them",
        )
    return levels


def sample_sigmas(
    ctx: Ctx,
    generators: list[torch.Generator],
    chunks: int,
    *,
    each: bool,
    first: bool = True,
    sigma_max: float = 1.0,
    sigma_min: float = 0.0,
) -> torch.Tensor:
    """One of the sampler's levels for every frame of `chunks` chunks, ``[N, F]``, a generator a sample.

    each: whether every chunk draws its own, or all of a sample have one. first: whether the video begins with these
    chunks; where the sampler has other levels there, the first chunk draws among those.
    """
    sampler = ctx.student.spec.sampler

    def draw(count: int, *, first: bool) -> torch.Tensor:
        levels = torch.tensor(sampler_levels(sampler, sigma_max, sigma_min, first=first))
        return levels[torch.stack([torch.randint(len(levels), (count,), generator=g) for g in generators])]

    sigma = draw(chunks if each else 1, first=False).expand(-1, chunks)
    if first and sampler.first_sigmas:
        sigma = torch.cat([draw(1, first=True), sigma[:, 1:]], 1)
    return sigma.repeat_interleave(ctx.chunk_frames, 1).to(ctx.device)


FLAT = 0.05
"""Least spread that a gap is measured by: of a clip that shows next to nothing, rounding would count as a gap."""


def replay_gap(replayed: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Root mean square of the difference of two predictions over the spread of the recorded one: the largest of the
    samples ``[N, ...]``, a scalar.

    About 0 in fp32 and 0.01 in bf16, whose largest single difference is thirty times that.
    """
    difference = (replayed - recorded).to(torch.promote_types(recorded.dtype, torch.float32)).flatten(1)
    return (difference.square().mean(1).sqrt() / recorded.flatten(1).std(1).clamp(min=FLAT)).max()


def on_policy_gap(ctx: Ctx, rollout: Rollout, text: torch.Tensor, candidates: int) -> float:
    """How far the loss' forward is from the rollout on the rollout's own states, at the last denoising step of the
    recorded chunks, see `replay_gap`; about 0 when both see the same cache.

    text: features ``[P, L, D]``. candidates: how many of the first prompt's are predicted again.
    """
    rows, states = slice(0, candidates), [rollout.states[chunk] for chunk in sorted(rollout.states)]
    x_t = torch.cat([state.x_t[rows, -1] for state in states], 1)
    recorded = torch.cat([state.x0[rows, -1] for state in states], 1)
    levels = [torch.full(state.x_t.shape[2:3], state.sigmas[-1], dtype=torch.float64) for state in states]
    sigma = torch.cat(levels).expand(len(x_t), -1).to(x_t.device)
    context, clean = rollout.context.rows(slice(0, 1)), rollout.latents[rows, rollout.branch]
    with ctx.policy("old"):
        replay = ctx.student.predict_x0(x_t, sigma, text[:1], context, clean=clean)
    return float(replay_gap(replay, recorded))
