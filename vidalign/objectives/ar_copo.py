"""AR-CoPO: contrastive policy optimisation at a pivot chunk (arXiv 2603.17461), on Neighbor GRPO (2511.16955).

Few-step samplers are nearly deterministic after the first noise of a chunk, so candidates differ in that noise. No
log-probability is needed. One step:
1. a pivot chunk, the same on every rank; the chunks before it are rolled once with `old` and frozen as context h;
2. fork: `group_size` neighbours of the pivot's initial noise, ``eps_i = sqrt(1 - s^2) eps* + s delta_i``. All other
   noise, the pivot's re-noising too, is drawn once and shared. The pivot's states and predictions are recorded;
3. every candidate finishes the video, the whole of which is scored; A = z-score in the group; groups without spread
   weigh nothing and are counted;
4. the first `anchors` candidates give states ``x_t^(k)``; at each of the sampler's T steps
   ``d_i = mean |x0_old^(i) - F(x_t^(k), h, t)|^2``, ``pi(i) = softmax_i(-d_i / tau)``, ``rho = pi_current / pi_old``,
   ``L = -mean min(rho A, clip(rho, 1 +- eps) A)`` over candidates, steps and anchors  (`losses/neighbor_grpo.py`);
   `inner_updates` optimiser steps; rho == 1 is asserted before the first one;
5. ``old <- current``.

Semi-on-policy: with `buffer` the groups come from a folder written by ``vidalign collect``. `old` stays the student
that the run began with, and the clip is a trust region around it. Train it as an adapter of its own and add the
on-policy one with ``vidalign merge``.

What we changed: the paper gives neither tau nor the reduction of distances (here 1 and the mean). Rewards are whitened
over the batch before they are added up (`combine`). All groups of a step share their pivot, also those drawn from a
buffer. The re-noising of the pivot may differ too (`neighbours: all`), for students whose first draw decides nothing.
The pivot may be kept to the first chunks (`pivots`), for worlds in which a late fork decides nothing.
Knobs that matter: noise_scale, neighbours, pivots, clip, temperature, learning rate, group_size, inner_updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from vidalign.cost import Cost, StepSizes
from vidalign.losses.neighbor_grpo import neighbor_grpo_loss, quasi_normalise
from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase, TrainedRole
from vidalign.objectives.parts.around import Around, require_renoising
from vidalign.objectives.parts.groups import Forked, GroupSource, Neighbours, OnPolicyGroups, StoredGroups
from vidalign.objectives.parts.rollouts import replay_gap
from vidalign.objectives.parts.scoring import compute_advantages, group_weights, grouped_scores
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import VideoStudent

RATIO_GAP = 1e-5
"""Largest |rho - 1| before the first update: rounding, a tenth of the paper's clip."""


class ARCoPO(Objective):
    name = "ar_copo"
    needs = Needs(rewards=True, min_group=2)

    @dataclass
    class Config:
        group_size: int = 12
        """Candidates per prompt."""
        anchors: int = 4
        """Candidates whose states are predicted again with gradient."""
        noise_scale: float = 0.5
        """s: how far candidates lie from the shared centre, in 0..1; two of them correlate by 1 - s^2."""
        neighbours: Neighbours = "initial"
        """Which noise of the pivot differs: the first draw, or the re-noising too. A student that is flow-matched but
        not distilled hardly uses its first draw."""
        pivots: int = 0
        """The pivot is one of the first so many chunks; 0 = any chunk."""
        clip: float | None = 1e-4
        """Ratios beyond 1 +- clip gain nothing; null removes the clip."""
        temperature: float = 1.0
        """tau: lower values single out the nearest candidate."""
        inner_updates: int = 2
        """Optimiser steps on one set of groups."""
        combine: Literal["whitened", "raw_sum"] = "whitened"
        """How rewards are added up before the z-score in the group."""
        quasi_norm: float | None = None
        """Exponent p of Neighbor GRPO's normalisation of advantages (0.8 for images); null leaves the z-scores."""
        buffer: str = ""
        """Folder written by `vidalign collect`: its groups are drawn and the old policy stays; empty = on-policy."""

        def __post_init__(self) -> None:
            if not 1 <= self.anchors <= self.group_size:
                raise ValueError(f"anchors must lie in 1..group_size, which is {self.group_size}")
            require(self, "noise_scale", above=0, most=1)
            require(self, "clip", "quasi_norm", "temperature", above=0)
            require(self, "pivots", least=0)
            require(self, "inner_updates", least=1)

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.fresh = OnPolicyGroups(config.group_size, config.noise_scale, config.neighbours, config.pivots)
        """How groups are forked, here and by ``vidalign collect``."""
        self.groups: GroupSource = StoredGroups(config.buffer, self.fresh) if config.buffer else self.fresh

    def fit(self, around: Around) -> None:
        if self.config.neighbours == "all":
            require_renoising(around.sampler, "ar_copo with objective.neighbours: all")
        if around.chunks:
            self.fresh.check(around.chunks)

    def blueprint(self) -> Blueprint:
        return Blueprint({"old": self.groups.rule}, {"student": TrainedRole(self.config.inner_updates)})

    # --- collect ---

    def collect(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Experience:
        return self._experience(ctx, self.groups.groups(ctx, batch))

    def digest(self, ctx: TrainContext[VideoStudent], experience: Experience) -> Experience:
        scores = grouped_scores(ctx, experience)
        judged = compute_advantages(ctx, scores, combination=self.config.combine, normalise="group")
        device = experience["sigma"].device
        advantage = judged.advantage.to(device)
        if self.config.quasi_norm is not None:
            advantage = quasi_normalise(advantage, self.config.quasi_norm)
        experience.shared["advantage"] = advantage
        experience.tensors["weight"] = group_weights(judged).to(device).repeat_interleave(experience.group_size)
        if experience.request is None:  # the scores of stored groups say nothing about the student as it is now
            judged.metrics = {name: v for name, v in judged.metrics.items() if not name.startswith("reward/")}
        experience.metrics |= judged.metrics
        return experience

    def _experience(self, ctx: TrainContext[VideoStudent], forked: Forked) -> Experience:
        """One entry for every prompt, anchor and step; what the candidates predicted is held once a prompt."""
        groups, anchors = forked.groups, self.config.anchors
        count = len(groups.prompts)
        levels = ctx.student.spec.sampler.steps(first=groups.pivot == 0)
        sigma = torch.tensor(levels, dtype=torch.float64, device=groups.x0.device)
        steps = torch.arange(len(levels), device=sigma.device)
        tensors = {
            "x_t": groups.states(levels)[:, :anchors].flatten(0, 2),
            "sigma": sigma.repeat(count * anchors),
            "step": steps.repeat(count * anchors),
            "anchor": torch.arange(anchors, device=sigma.device).repeat_interleave(len(levels)).repeat(count),
        }
        return Experience(
            tensors,
            torch.arange(count).repeat_interleave(anchors * len(levels)),
            ctx.text(groups.prompts),
            groups.prompts,
            forked.context,
            forked.metrics,
            shared={"x0": groups.x0},
            request=forked.request,
            scores={name: value.flatten() for name, value in groups.rewards.items()},
        )

    # --- loss ---

    def loss(self, ctx: TrainContext[VideoStudent], micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, config = micro_batch.data, self.config
        group_index = data.group_index.to(data["step"].device)
        candidates = data.shared["x0"][group_index, :, data["step"]]  # (N, G, f, C, H, W)
        current = ctx.student.predict_x0(data["x_t"], data["sigma"], data.features, data.context)
        with torch.no_grad(), ctx.policy("old"):
            old = ctx.student.predict_x0(data["x_t"], data["sigma"], data.features, data.context)
        advantage = data.shared["advantage"][group_index]
        result = neighbor_grpo_loss(
            current, old, candidates, advantage, clip=config.clip, temperature=config.temperature
        )
        gap = (result.ratio - 1).abs().max()
        if ctx.update == 0 and (self.groups.rule == "current" or ctx.step == 0):
            assert gap <= RATIO_GAP, f"current and old agree before the first update, |ratio - 1| is {float(gap):.2g}"
        recorded = candidates[torch.arange(len(group_index), device=group_index.device), data["anchor"]]
        metrics = {
            "objective/ratio_gap/max": gap,
            "objective/clip_fraction/mean": result.clipped,
            "health/on_policy_gap/max": replay_gap(old, recorded),
        }
        counts = {"objective/clip_fraction/mean": int((advantage != 0).sum())}
        return LossOut((data["weight"] * result.loss).mean(), metrics, counts=counts)

    def cost(self, sizes: StepSizes) -> Cost:
        """What the groups cost, and the current and old forwards of the pivot: a random one."""
        pivot, groups = self.groups.cost(sizes)
        states = sizes.prompts * self.config.anchors * len(sizes.sampler.steps(first=pivot == 0))
        return groups + Cost(forwards=2 * self.config.inner_updates * states)
