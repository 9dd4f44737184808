"""Flow-GRPO on the re-noising steps of a few-step sampler (arXiv 2505.05470; DanceGRPO, 2505.07818): the SDE policy
gradient that AR-CoPO (2603.17461) shows flat.

The sampler noises every prediction but the last again, ``x' = (1 - sigma') x0 + sigma' noise``: a Gaussian policy whose
actions are those draws. One step:
1. every prompt gets `group_size` videos, rolled with `old`; all states are kept and the whole video is scored;
2. A = z-score in the group                                                       (`losses/advantages.py`);
3. each state of each video is predicted again, all chunks in one teacher-forcing forward;
   ``log p = -mean |x' - (1 - sigma') x0|^2 / (2 sigma'^2)`` of every chunk, ``ratio = p_current / p_old``,
   ``L = -mean min(ratio A, clip(ratio, 1 +- eps) A)`` over chunks, steps and videos (`losses/policy_gradient.py`);
4. ``old <- current``.

What we changed: no ODE is turned into an SDE, as these samplers are stochastic already. The keys and values of clean
chunks are part of the policy and trained too, as in teacher forcing. There is no KL term.
Knobs that matter: initial_noise (shared: the re-noising alone separates candidates), clip, learning rate, group_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.errors import UserError
from vidalign.losses.policy_gradient import clip_fraction, clipped_surrogate, renoising_log_prob
from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase, TrainedRole
from vidalign.objectives.parts.around import Around, require_renoising
from vidalign.objectives.parts.rollouts import replay_gap
from vidalign.objectives.parts.scoring import Judging, compute_advantages, grouped_scores
from vidalign.ranges import require
from vidalign.students.video.rollout import Noise, Rollout, RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent


class FlowGRPO(Objective):
    name = "flow_grpo"
    needs = Needs(rewards=True, min_group=2)

    @dataclass
    class Config:
        group_size: int = 12
        """Videos per prompt."""
        initial_noise: Literal["shared", "independent"] = "independent"
        """Whether the videos of a prompt begin with the same noise (DanceGRPO) or each with its own (Flow-GRPO)."""
        clip: float | None = 1e-4
        """Ratios beyond 1 +- clip gain nothing; null removes the clip."""
        inner_updates: int = 1
        """Optimiser steps on one set of videos."""
        combine: Literal["whitened", "raw_sum"] = "whitened"
        """How rewards are added up before the z-score in the group."""

        def __post_init__(self) -> None:
            require(self, "clip", above=0)
            require(self, "inner_updates", least=1)

    config: Config

    def fit(self, around: Around) -> None:
        require_renoising(around.sampler, "flow_grpo")
        if around.chunks and around.sampler:
            _check_steps([len(around.sampler.steps(not number)) for number in range(around.chunks)])

    def blueprint(self) -> Blueprint:
        return Blueprint({"old": "current"}, {"student": TrainedRole(self.config.inner_updates)})

    # --- collect ---

    def collect(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Experience:
        group_size = self.config.group_size
        text = ctx.text(batch.prompts)
        plan = RolloutPlan(prefix=0, branch=ctx.chunks, group_size=group_size, record=tuple(range(ctx.chunks)))
        noise = ctx.student.draw_noise(plan, ctx.generators("rollout", batch.ids))
        if self.config.initial_noise == "shared":
            noise = Noise(noise.initial[::group_size].repeat_interleave(group_size, 0), noise.renoise)
        judging = Judging(ctx, batch.prompts, group_size)
        with ctx.policy("old"), ctx.gathered():
            rollout = ctx.student.rollout(text, plan, noise, on_part=judging.add)
        data = self._experience(rollout, text, batch.prompts)
        data.request, data.metrics = judging.request()
        return data

    def digest(self, ctx: TrainContext[VideoStudent], experience: Experience) -> Experience:
        scores = grouped_scores(ctx, experience)
        judged = compute_advantages(ctx, scores, combination=self.config.combine, normalise="group")
        steps = experience.group_size // self.config.group_size
        advantage = judged.advantage.flatten().to(experience["step"].device)
        experience.tensors["advantage"] = advantage.repeat_interleave(steps)
        experience.metrics |= judged.metrics
        return experience

    def _experience(self, rollout: Rollout, text: torch.Tensor, prompts: list[str]) -> Experience:
        """One entry for every prompt, video and re-noising step; the videos' states are held once a prompt."""
        count, group_size = len(prompts), self.config.group_size
        states = list(rollout.states.values())
        device = rollout.latents.device
        steps = _check_steps([len(state.sigmas) for state in states]) - 1
        frames = rollout.latents.shape[1] // len(states)
        levels = torch.tensor([state.sigmas for state in states], dtype=torch.float64, device=device)
        levels = levels.repeat_interleave(frames, 0).T  # (steps + 1, F)
        tensors = {
            "video": torch.arange(group_size, device=device).repeat_interleave(steps).repeat(count),
            "step": torch.arange(steps, device=device).repeat(count * group_size),
            "sigma": levels[:-1].repeat(count * group_size, 1),
            "sigma_next": levels[1:].repeat(count * group_size, 1),
        }
        shared = {"x0": rollout.latents.unflatten(0, (count, group_size))}
        for name in ("x_t", "x0"):
            shared[f"states.{name}"] = torch.cat([getattr(s, name) for s in states], 2).unflatten(
                0, (count, group_size)
            )
        group_index = torch.arange(count).repeat_interleave(group_size * steps)
        return Experience(tensors, group_index, text, prompts, shared=shared)

    # --- loss ---

    def loss(self, ctx: TrainContext[VideoStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, clip = micro_batch.data, self.config.clip
        step = data["step"]
        place = (data.group_index.to(step.device), data["video"])
        x_t, x_next = data.shared["states.x_t"][*place, step], data.shared["states.x_t"][*place, step + 1]
        clean, recorded = data.shared["x0"][place], data.shared["states.x0"][*place, step]

        def predict() -> torch.Tensor:
            return ctx.student.predict_x0(x_t, data["sigma"], data.features, None, clean=clean)

        current = predict()
        old = current.detach()  # `after_step` has set old to current: the same numbers, one forward less
        if ctx.update > 0:
            with torch.no_grad(), ctx.policy("old"):
                old = predict()
        now, before = (
            renoising_log_prob(x_next, x0, data["sigma_next"]).unflatten(1, (-1, ctx.chunk_frames)).mean(2)
            for x0 in (current, old)
        )  # (N, chunks)
        ratio, advantage = (now - before).exp(), data["advantage"].unsqueeze(1)
        loss = -clipped_surrogate(ratio, advantage, clip).mean()
        metrics = {
            "objective/ratio_gap/max": (ratio.detach() - 1).abs().max(),
            "objective/clip_fraction/mean": clip_fraction(ratio.detach(), advantage.expand_as(ratio), clip),
            "health/on_policy_gap/max": replay_gap(old, recorded),
        }
        return LossOut(loss, metrics, counts={"objective/clip_fraction/mean": int((data["advantage"] != 0).sum())})


def _check_steps(counts: list[int]) -> int:
    """How many steps the sampler takes in every chunk, given those of each."""
    if counts[-1] < 2 or len(set(counts)) > 1:
        raise UserError(
            f"flow_grpo cannot train a sampler of {counts} steps a chunk",
            where="student",
            why="it needs two or more, the same number for all chunks",
            fix="use another objective, such as ar_copo",
        )
    return counts[-1]
