"""Whole videos rolled out on-policy, and how far the forward of a loss is from the rollout that it trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vidalign.objectives.base import Experience
from vidalign.objectives.parts.scoring import Judging
from vidalign.students.video.rollout import Noise, RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent
    from vidalign.students.video.rollout import Rollout
    from vidalign.students.video.rollout.branching import OnPart

FLAT = 0.05
"""Least spread that a gap is measured by: of a clip that shows next to nothing, rounding would count as a gap."""


def roll_videos(
    ctx: TrainContext[VideoStudent],
    text: torch.Tensor,
    ids: list[int],
    group_size: int = 1,
    policy: str = "current",
    on_part: OnPart | None = None,
) -> Rollout:
    """`group_size` independent whole videos of each of the texts ``[P, L, D]`` by a policy, all states recorded; of
    groups that several processes share, this process' part. on_part: see `VideoStudent.rollout`."""
    plan = RolloutPlan(prefix=0, branch=ctx.chunks, group_size=group_size, record=tuple(range(ctx.chunks)))
    plan, noise = own_part(ctx, plan, ctx.student.draw_noise(plan, ctx.generators("rollout", ids)))
    with ctx.policy(policy), ctx.gathered():
        return ctx.student.rollout(text, plan, noise, on_part=on_part)


def own_part(ctx: TrainContext[VideoStudent], plan: RolloutPlan, noise: Noise) -> tuple[RolloutPlan, Noise]:
    """Plan and noise of the candidates that this process has, from those of whole groups: what they are does not depend
    on how many processes share a group."""
    own = ctx.own_candidates(plan.group_size)
    rows = torch.arange(len(noise.initial)).unflatten(0, (-1, plan.group_size))[:, own].flatten()
    return replace(plan, group_size=own.stop - own.start), Noise(noise.initial[rows], noise.renoise[rows])


def candidate_ids(ctx: TrainContext[VideoStudent], ids: list[int], group_size: int) -> torch.Tensor:
    """Numbers ``[P * G]`` of this process' candidates of the samples `ids`, for the counter RNG of the loss."""
    own = torch.arange(group_size)[ctx.own_candidates(group_size)]
    return torch.tensor(ids).repeat_interleave(len(own)) * group_size + own.repeat(len(ids))


def video_groups(
    ctx: TrainContext[VideoStudent], batch: Batch, group_size: int, *, replayed: int = 1, policy: str = "old"
) -> Experience:
    """Groups of whole videos by a policy, to be judged: tensors x0 ``[P * G, F, C, H, W]`` and sample ``[P * G]``.

    replayed: how many candidates of the first prompt are predicted again to measure the on-policy gap.
    """
    text = ctx.text(batch.prompts)
    own = ctx.own_candidates(group_size)
    judging = Judging(ctx, batch.prompts, own.stop - own.start)
    rollout = roll_videos(ctx, text, batch.ids, group_size, policy, judging.add)
    request, metrics = judging.request()
    replayed = min(replayed, len(rollout.latents) // len(text))
    metrics["health/on_policy_gap/max"] = on_policy_gap(ctx, rollout, text, replayed, policy)
    tensors = {"x0": rollout.latents, "sample": candidate_ids(ctx, batch.ids, group_size)}
    return Experience(tensors, request.group_index, text, batch.prompts, metrics=metrics, request=request)


def states_at(rollout: Rollout, uniform: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the sampler saw and predicted at one step of every chunk, chosen by `uniform` ``[N]`` in [0, 1).

    x_t, x0: ``[N, F, C, H, W]``; sigma: ``[N, F]``; step: ``[N, chunks]``; latents: the finished chunks. A chunk with
    its own list of levels is at the same fraction of it.
    """
    rows = torch.arange(len(uniform), device=uniform.device)
    columns: dict[str, list[torch.Tensor]] = {"x_t": [], "x0": [], "sigma": [], "step": []}
    for chunk in sorted(rollout.states):
        state = rollout.states[chunk]
        step = (uniform * len(state.sigmas)).long()
        sigma = torch.tensor(state.sigmas, dtype=torch.float64, device=uniform.device)[step]
        columns["x_t"].append(state.x_t[rows, step])
        columns["x0"].append(state.x0[rows, step])
        columns["sigma"].append(sigma.unsqueeze(1).expand(-1, state.x_t.shape[2]))
        columns["step"].append(step.unsqueeze(1))
    return {name: torch.cat(values, 1) for name, values in columns.items()} | {"latents": rollout.latents}


def replay_gap(replayed: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Root mean square of the difference of two predictions over the spread of the recorded one: the largest of the
    samples ``[N, ...]``, a scalar.

    About 0 in fp32 and 0.01 in bf16, whose largest single difference is thirty times that.
    """
    difference = (replayed - recorded).to(torch.promote_types(recorded.dtype, torch.float32)).flatten(1)
    return (difference.square().mean(1).sqrt() / recorded.flatten(1).std(1).clamp(min=FLAT)).max()


def on_policy_gap(
    ctx: TrainContext[VideoStudent], rollout: Rollout, text: torch.Tensor, candidates: int, policy: str = "old"
) -> float:
    """How far the loss' forward is from the rollout of a policy on its own states, at the last denoising step of the
    recorded chunks, see `replay_gap`; about 0 when both see the same cache.

    text: features ``[P, L, D]``. candidates: how many of the first prompt's are predicted again, no more at once than
    the student rolls out (`Student.rollout_batch`).
    """
    states = [rollout.states[chunk] for chunk in sorted(rollout.states)]
    levels = [torch.full(state.x_t.shape[2:3], state.sigmas[-1], dtype=torch.float64) for state in states]
    context, most = rollout.context.rows(slice(0, 1)), ctx.student.rollout_batch or candidates
    gaps = []
    for start in range(0, candidates, most):
        rows = slice(start, min(start + most, candidates))
        x_t = torch.cat([state.x_t[rows, -1] for state in states], 1)
        recorded = torch.cat([state.x0[rows, -1] for state in states], 1)
        sigma = torch.cat(levels).expand(len(x_t), -1).to(x_t.device)
        with ctx.policy(policy):
            clean = rollout.latents[rows, rollout.branch]
            replay = ctx.student.predict_x0(x_t, sigma, text[:1], context, clean=clean)
        gaps.append(float(replay_gap(replay, recorded)))
    return max(gaps)
