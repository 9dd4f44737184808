"""What objectives share that predict their rollouts again: the noise levels, and whether they see what was rolled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vidalign.errors import UserError

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.rollout import Rollout


def sampler_levels(ctx: TrainContext, sigma_max: float, sigma_min: float = 0.0) -> list[float]:
    """The sampler's own noise levels in ``[sigma_min, sigma_max]``, descending; `UserError` when there is none."""
    levels = [sigma for sigma in ctx.sigmas if sigma_min <= sigma <= sigma_max]
    if not levels:
        raise UserError(
            f"{sigma_min} to {sigma_max} leaves no noise level to train on",
            where="objective.sigma_max", why=f"the student's sampler visits {ctx.sigmas}",
            fix="let the range hold one of them",
        )  # fmt: skip
    return levels


def on_policy_gap(ctx: TrainContext, rollout: Rollout, text: torch.Tensor, candidates: int) -> float:
    """How far the loss' forward is from the rollout on the rollout's own states, at the last denoising step of the
    recorded chunks: largest difference over the spread of the prediction; about 0 when both see the same cache.

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
    return float((replay - recorded).abs().max() / recorded.std().clamp(min=1e-6))
