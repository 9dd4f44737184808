"""AR-CoPO: contrastive policy optimisation at a pivot chunk (arXiv 2603.17461), on Neighbor GRPO (2511.16955).

Few-step samplers are nearly deterministic after the first noise of a chunk, so candidates differ in that noise and no
log-probability is needed. One step:
1. a pivot chunk, the same on every rank; the chunks before it are rolled once with `old` and frozen as context h;
2. fork: `group_size` neighbours of the pivot's initial noise, ``eps_i = sqrt(1 - s^2) eps* + s delta_i``; all other
   noise, the pivot's re-noising too, is drawn once and shared. The pivot's states and predictions are recorded;
3. every candidate finishes the video, the whole of which is scored; A = z-score in the group; groups without spread
   weigh nothing and are counted;
4. the first `anchors` candidates give states ``x_t^(k)``; at each of the sampler's T steps
   ``d_i = mean |x0_old^(i) - F(x_t^(k), h, t)|^2``, ``pi(i) = softmax_i(-d_i / tau)``, ``rho = pi_current / pi_old``,
   ``L = -mean min(rho A, clip(rho, 1 +- eps) A)`` over candidates, steps and anchors  (`losses/neighbor_grpo.py`);
   `inner_updates` optimiser steps; rho == 1 is asserted before the first one;
5. ``old <- current``.

Semi-on-policy: with `buffer` the groups come from a folder written by ``vidalign collect`` and `old`, the student that
the run began with, stays for good: the clip is a trust region around it. Train it as an adapter of its own and add the
on-policy one with ``vidalign merge``.

What we changed: the paper gives neither tau nor the reduction of distances (here 1 and the mean); rewards are
whitened over the batch before they are added up (`combine`); all groups of a step share their pivot, also those drawn
from a buffer; the re-noising of the pivot may differ too (`neighbours: all`) and the pivot may be kept to the first
chunks (`pivots`), for students and worlds in which the first draw or a late fork decides nothing.
Knobs that matter: noise_scale, neighbours, pivots, clip, temperature, learning rate, group_size, inner_updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from vidalign.cost import Cost, StepSizes
from vidalign.errors import UserError
from vidalign.losses.neighbor_grpo import neighbor_grpo_loss, quasi_normalise
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase, PolicyRule
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.replay import replay_gap
from vidalign.objectives.parts.scoring import compute_advantages, group_weights, grouped_scores, request_groups
from vidalign.provenance import weights_hash
from vidalign.students.video.rollout import RolloutPlan
from vidalign.students.video.rollout.buffer import Buffer, ForkedGroups

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.rewards.base import ScoreRequest
    from vidalign.students.video import Context, VideoStudent

    Ctx = TrainContext[VideoStudent]

RATIO_GAP = 1e-5
"""Largest |rho - 1| before the first update: rounding, a tenth of the paper's clip."""


class ARCoPO(Objective):
    name = "ar_copo"
    needs = Needs(rewards=True, policies=("old",), min_group=2)

    @dataclass
    class Config:
        group_size: int = 12
        """Candidates per prompt."""
        anchors: int = 4
        """Candidates whose states are predicted again with gradient."""
        noise_scale: float = 0.5
        """s: how far candidates lie from the shared centre, in 0..1; two of them correlate by 1 - s^2."""
        neighbours: Literal["initial", "all"] = "initial"
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
            if not 0 < self.noise_scale <= 1:
                raise ValueError("noise_scale must lie above 0 and at most at 1")
            for name in ("clip", "quasi_norm"):
                value = getattr(self, name)
                if value is not None and value <= 0:
                    raise ValueError(f"{name} must be positive, or null")
            if self.pivots < 0:
                raise ValueError("pivots must be at least 0")
            if self.temperature <= 0:
                raise ValueError("temperature must be positive")
            if self.inner_updates < 1:
                raise ValueError("inner_updates must be at least 1")

    config: Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._checked = False
        """Whether the buffer was compared with the run."""

    def fit(self, around: Around) -> None:
        if around.chunks:
            self._check_pivots(around.chunks)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(updates=self.config.inner_updates),)

    def policy_rules(self) -> dict[str, PolicyRule]:
        return {"old": "fixed" if self.config.buffer else "current"}

    # --- collect ---

    def collect(self, ctx: Ctx, batch: Batch) -> Experience:
        if self.config.buffer:  # stored groups were judged when they were collected
            groups, context = self._draw(ctx, batch)
            data = self._experience(ctx, groups, context)
            data.scores = {name: value.flatten() for name, value in groups.rewards.items()}
            return data
        groups, context, request, metrics = self.fork(ctx, batch)
        data = self._experience(ctx, groups, context)
        data.request, data.metrics = request, metrics
        return data

    def digest(self, ctx: Ctx, experience: Experience) -> Experience:
        scores = grouped_scores(ctx, experience)
        judged = compute_advantages(ctx, scores, combination=self.config.combine, normalise="group")
        device = experience["sigma"].device
        advantage = judged.advantage.to(device)
        if self.config.quasi_norm is not None:
            advantage = quasi_normalise(advantage, self.config.quasi_norm)
        experience.shared["advantage"] = advantage
        experience.tensors["weight"] = group_weights(judged).to(device).repeat_interleave(experience.group_size)
        if self.config.buffer:  # the scores of stored groups say nothing about the student as it is now
            judged.metrics = {name: v for name, v in judged.metrics.items() if not name.startswith("reward/")}
        experience.metrics |= judged.metrics
        return experience

    def fork(self, ctx: Ctx, batch: Batch) -> tuple[ForkedGroups, Context, ScoreRequest, dict[str, float]]:
        """Roll out the groups of a batch with the old policy, not judged yet; also the context before their pivot, one
        row a prompt, what is to be judged, and what to log."""
        config, size = self.config, self.config.group_size
        plan = self._plan(ctx)
        branch = "neighbour" if config.neighbours == "initial" else "neighbour_all"
        noise = ctx.student.draw_noise(
            plan, ctx.generators("rollout", batch.ids), branch=branch, scale=config.noise_scale, suffix="shared"
        )
        with ctx.policy("old"), ctx.gathered():
            rollout = ctx.student.rollout(ctx.text(batch.prompts), plan, noise)
        request, metrics = request_groups(ctx, rollout.latents, batch.prompts)
        state, frames = rollout.states[plan.prefix], rollout.branch
        renoise = noise.renoise[:, : len(state.sigmas) - 1, frames].unflatten(0, (-1, size))
        groups = ForkedGroups(
            prompts=batch.prompts,
            pivot=plan.prefix,
            history=rollout.latents[::size, : frames.start],
            initial=state.x_t[:, 0].unflatten(0, (-1, size)),
            renoise=(renoise[:, :1] if config.neighbours == "initial" else renoise).to(rollout.latents.device),
            x0=state.x0.unflatten(0, (-1, size)),
            rewards={},
        )
        return groups, rollout.context, request, metrics

    def _check_pivots(self, chunks: int) -> None:
        if self.config.pivots > chunks:
            raise UserError(
                f"the pivot cannot be one of {self.config.pivots} chunks",
                where="objective.pivots",
                why=f"a video has {chunks}",
                fix="use fewer, or 0 for any chunk",
            )

    def _plan(self, ctx: Ctx | StepSizes) -> RolloutPlan:
        """Fork at a random chunk, the same on every rank."""
        self._check_pivots(ctx.chunks)
        pivot = int(torch.randint(self.config.pivots or ctx.chunks, (), generator=ctx.shared_generator("pivot")))
        size, suffix = self.config.group_size, ctx.chunks - 1 - pivot
        return RolloutPlan(pivot, branch=1, suffix=suffix, group_size=size, record=(pivot,))

    def settings(self, ctx: Ctx) -> dict[str, Any]:
        """What shapes a group in a buffer."""
        config, own = self.config, ctx.student.spec.sampler.first_sigmas
        return {
            "objective.group_size": config.group_size,
            "objective.noise_scale": config.noise_scale,
            "objective.neighbours": config.neighbours,
            "objective.pivots": config.pivots,
            "data.frames": ctx.frames,
            "rewards": sorted(ctx.reward_weights),
            "sampler": ctx.sigmas,
            "chunk": list(ctx.student.chunk_shape),
            **({"sampler of the first chunk": own} if own else {}),
        }

    @cached_property
    def buffer(self) -> Buffer:
        """The buffer that the recipe names."""
        return Buffer.open(self.config.buffer)

    def _draw(self, ctx: Ctx, batch: Batch) -> tuple[ForkedGroups, Context]:
        """Groups of the buffer for this rank; the context is rebuilt from their latents under the old policy."""
        if not self._checked:
            self.buffer.check(student=weights_hash(ctx.policies.weights("old")), settings=self.settings(ctx))
            self._checked = True
        total = len(batch.ids) * ctx.world_size
        drawn = self.buffer.draw(total, ctx.shared_generator("buffer"))
        groups = self.buffer.read([drawn[i % total] for i in batch.ids]).to(ctx.device)
        text = ctx.text(groups.prompts)
        context = ctx.student.begin(text)
        if groups.pivot:
            with ctx.policy("old"), ctx.gathered():
                context = ctx.student.extend(context, groups.history, text)
        return groups, context

    def _experience(self, ctx: Ctx, groups: ForkedGroups, context: Context) -> Experience:
        """One entry for every prompt, anchor and step; what the candidates predicted is held once a prompt."""
        count, anchors = len(groups.prompts), self.config.anchors
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
            context,
            shared={"x0": groups.x0},
        )

    # --- loss ---

    def loss(self, ctx: Ctx, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, config = micro_batch.data, self.config
        group = data.group.to(data["step"].device)
        candidates = data.shared["x0"][group, :, data["step"]]  # (N, G, f, C, H, W)
        current = ctx.student.predict_x0(data["x_t"], data["sigma"], data.features, data.context)
        with torch.no_grad(), ctx.policy("old"):
            old = ctx.student.predict_x0(data["x_t"], data["sigma"], data.features, data.context)
        found = neighbor_grpo_loss(
            current, old, candidates, data.shared["advantage"][group], clip=config.clip, temperature=config.temperature
        )
        gap = (found.ratio - 1).abs().max()
        if ctx.update == 0 and (not config.buffer or ctx.step == 0):
            assert gap <= RATIO_GAP, f"current and old agree before the first update, |ratio - 1| is {float(gap):.2g}"
        recorded = candidates[torch.arange(len(group), device=group.device), data["anchor"]]
        metrics = {
            "objective/ratio_gap/max": gap,
            "objective/clip_fraction/mean": found.clipped,
            "health/on_policy_gap/max": replay_gap(old, recorded),
        }
        counts = {"objective/clip_fraction/mean": int((data.shared["advantage"][group] != 0).sum())}
        return LossOut((data["weight"] * found.loss).mean(), metrics, counts=counts)

    def cost(self, sizes: StepSizes) -> Cost:
        """Rollout, or the clean passes that rebuild the context of stored groups, and the current and old forwards of
        the pivot."""
        config = self.config
        if config.buffer:
            pivot = self.buffer.pivots()[self.buffer.draw(sizes.prompts, sizes.shared_generator("buffer"))[0]]
            before, calls = sizes.prompts * pivot, 0
        else:
            plan = self._plan(sizes)
            pivot, before, calls = plan.prefix, sizes.rollout(plan), sizes.prompts * plan.group_size * sizes.rewards
        states = sizes.prompts * config.anchors * len(sizes.sampler.steps(first=pivot == 0))
        return Cost(forwards=before + 2 * config.inner_updates * states, reward_calls=calls)

    def after_step(self, ctx: Ctx) -> None:
        if not self.config.buffer:
            ctx.policies.copy("current", "old")
