"""Astrolabe: negative-aware forward-process RL for causal few-step students (arXiv 2603.17051).

One step:
1. every prompt's visual history (`prefix` chunks, a random number that all ranks share) is rolled once with the `old`
   policy; its KV cache is the frozen, detached context, held once and broadcast over the group;
2. from it `group_size` candidate clips are rolled with independent noise and scored;
3. each reward is whitened over the batch, weighted and summed; ``A = R - mean_group(R)``, divided by the batch std;
   ``r = clip(A / A_max, -1, 1) / 2 + 1/2``                                       (`losses/advantages.py`);
4. the clip is noised to one of the student's own *warped* levels and predicted by three policies on that context:
   ``x+ = beta x0_cur + (1 - beta) x0_old``, ``x- = (1 + beta) x0_old - beta x0_cur``,
   ``L = mean[ r |x+ - x0|^2 + (1 - r) |x- - x0|^2 ] + lambda mean_M |x0_cur - x0_ref|^2``
   (`losses/forward_process.py`). M holds every sample (`kl.mode: uniform`) or those that the primary reward ranks
   high and the others low (`selective`, `losses/selective_kl.py`);
5. ``old <- d old + (1 - d) current`` with ``d = min(0.001 step, 0.5)``; ``reference <- current`` when the penalty has
   grown beyond `kl.reset_drift` or after `kl.reset_every` steps.

Streaming long tuning is the same step with videos of several training lengths and a student that rolls its cache:
`data.frames: 48`, `student.cache: {window: 12, sink: 3, rope: relative}`, `clip: {chunks: 2, score: clip}`. The history
is streamed (noise drawn and latents dropped chunk by chunk), the window alone is scored, noised and predicted, so the
memory of a step does not depend on the length of the video (`benchmarks/long_tuning.py`).

What we changed: statistics over distinct prompts, a chunk-causal loss on the clean cache, warped levels and whitened
rewards (the released code repeats prompts, trains under a frame-causal mask on levels that its sampler never visits
and adds raw scores). A clip of several chunks is trained by teacher forcing on its own clean chunks. `score: video`
judges history and clip together, for rewards that cannot read a law of motion from the clip alone. The drift that
resets the reference is relative to the variance of what is predicted, not absolute (0.15 in the released code).
Knobs that matter: learning rate, group_size, space, sigma_min, sigma_max, loss_noise, clip, beta, kl.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from vidalign.cost import Cost, StepSizes
from vidalign.engine import distributed
from vidalign.errors import UserError, nearest
from vidalign.losses.advantages import reward_weight
from vidalign.losses.flow_matching import add_noise, expand_sigma
from vidalign.losses.forward_process import forward_process_loss, reference_penalty
from vidalign.losses.selective_kl import BUFFER, RHO_START, adapt_rho, mean_gap, rank_discrepancy, uncertain
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase, PolicyRule
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.replay import (
    candidate_ids,
    decay_old,
    old_prediction,
    old_rule,
    on_policy_gap,
    sample_sigmas,
    sampler_levels,
)
from vidalign.objectives.parts.scoring import compute_advantages, group_weights, grouped_scores, request_groups
from vidalign.students.video.rollout import Rollout, RolloutPlan

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.students.video import Context, VideoStudent

    Ctx = TrainContext[VideoStudent]


@dataclass
class ClipConfig:
    """Which part of the video is a candidate."""

    chunks: int = 1
    """Chunks generated anew by every candidate: the window of long tuning; 0 = from the fork to the end of the
    video."""
    score: Literal["clip", "video"] = "clip"
    """What the rewards see: the clip alone, or history and clip together (the frames of the history are then kept)."""

    def __post_init__(self) -> None:
        if self.chunks < 0:
            raise ValueError("chunks must be at least 0")


@dataclass
class KLConfig:
    """The penalty that keeps the student near the reference policy."""

    mode: Literal["selective", "uniform", "none"] = "uniform"
    """selective: samples on which the rewards disagree, two or more rewards needed (one of weight 0 counts); uniform:
    every sample; none: no reference forward at all."""
    weight: float = 1e-4
    """Factor of the mean of ``|x0_cur - x0_ref|^2`` over the chosen samples."""
    primary: str | None = None
    """Reward whose favourites are suspected when the others rank them low; null = the first one listed."""
    reset_drift: float | None = None
    """The reference becomes the current policy when the mean penalty exceeds this share of a running mean of the
    variance of what is predicted; null = never. The paper's 0.15 is for latents of variance near 1."""
    reset_every: int | None = None
    """The reference becomes the current policy after this many steps at the latest (15 in the paper); null = never."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError("weight must be at least 0")
        for name in ("reset_drift", "reset_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, or null for never")
            if value is not None and self.mode == "none":
                raise ValueError(f"{name} resets a reference that mode none does not use")


@dataclass
class KLState:
    """What selection and reset remember from step to step."""

    rho: float = RHO_START
    """Share of the non-negative rank gaps that is penalised."""
    gaps: list[float] = field(default_factory=list)
    """Mean non-negative gap of the last `BUFFER` steps."""
    age: int = 0
    """Steps since the reference was reset."""
    variance: float = 0.0
    """Running mean of the variance of what is predicted."""


class Astrolabe(Objective):
    name = "astrolabe"
    needs = Needs(rewards=True, policies=("old", "reference"), min_group=2)

    @dataclass
    class Config:
        group_size: int = 8
        """Candidates per prompt."""
        clip: ClipConfig = field(default_factory=ClipConfig)
        """Which part of the video is a candidate, and what of it is scored."""
        beta: float = 0.1
        """Step of the implicit policies x+ and x-; the loss minimiser moves by (1 - 2r) e / beta."""
        advantage_std: Literal["group", "batch", "none"] = "batch"
        """Which standard deviation divides the advantage."""
        advantage_clip: float = 5.0
        """A_max: advantages beyond it count as it."""
        combine: Literal["whitened", "raw_sum"] = "whitened"
        """How rewards are added up; raw_sum is the released code."""
        space: Literal["x0", "velocity"] = "x0"
        """Space of the loss; x0-space is sigma^2 times velocity-space."""
        sigma_min: float = 0.0
        """Lowest of the sampler's noise levels to train on. At low levels a noised clip tells its own reward, and the
        update pulls predictions of good clips towards their mean: it blurs (`alpha` leaves 1/2 there)."""
        sigma_max: float = 1.0
        """Highest of them. At high levels a noised clip says little about which candidate it came from, so the
        gradient is mostly noise when batches are small."""
        loss_noise: Literal["sample", "group"] = "sample"
        """Who shares the noise and the level of the loss: nobody, or the candidates of a prompt, whose differences are
        then seen through common random numbers."""
        weighting: Literal["none", "adaptive"] = "none"
        """adaptive: DiffusionNFT's division by the branch error; collapses distilled students."""
        kl: KLConfig = field(default_factory=KLConfig)
        """Penalty towards the reference policy."""
        inner_updates: int = 1
        """Optimiser steps on one collected batch."""
        old_decay: float | None = None
        """Constant decay of the old policy; null = the schedule min(0.001 step, 0.5)."""

        def __post_init__(self) -> None:
            if not 0 <= self.sigma_min <= self.sigma_max:
                raise ValueError("sigma_min must lie in 0..sigma_max")
            for name in ("beta", "advantage_clip"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} must be positive")
            if self.inner_updates < 1:
                raise ValueError("inner_updates must be at least 1")
            if self.old_decay is not None and not 0 <= self.old_decay <= 1:
                raise ValueError("old_decay must lie in 0..1")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.kl = KLState()

    def fit(self, around: Around) -> None:
        config = self.config
        if around.chunks:
            self._check_clip(around.chunks)
        if config.kl.mode == "selective":
            self._primary(list(around.rewards))
        if around.sampler:
            sampler_levels(around.sampler, config.sigma_max, config.sigma_min)

    def _check_clip(self, chunks: int) -> None:
        if self.config.clip.chunks > chunks:
            raise UserError(
                f"a clip of {self.config.clip.chunks} chunks does not fit into a video of {chunks}",
                where="objective.clip.chunks",
                fix="use fewer chunks, 0 for the rest of the video, or more data.frames",
            )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(updates=self.config.inner_updates),)

    def policy_rules(self) -> dict[str, PolicyRule]:
        reset = self.config.kl.reset_drift is not None or self.config.kl.reset_every is not None
        return {"old": old_rule(self.config.old_decay), "reference": "own" if reset else "fixed"}

    # --- collect ---

    def collect(self, ctx: Ctx, batch: Batch) -> Experience:
        text, size, plan = ctx.text(batch.prompts), self.config.group_size, self._plan(ctx)
        with ctx.policy("old"), ctx.gathered():
            rollout, history = self._roll(ctx, plan, text, batch.ids)
        x0, whole = rollout.latents[:, rollout.branch], self.config.clip.score == "video"
        request, metrics = request_groups(
            ctx,
            rollout.latents if whole else x0,
            batch.prompts,
            history,
            first_frame=0 if whole else plan.prefix * ctx.chunk_frames,
        )
        metrics["health/on_policy_gap/max"] = on_policy_gap(ctx, rollout, text, size)
        tensors = {"x0": x0, "sample": candidate_ids(batch.ids, size)}
        return Experience(tensors, request.group, text, batch.prompts, rollout.context, metrics, request=request)

    def digest(self, ctx: Ctx, experience: Experience) -> Experience:
        weights, metrics = self._judge(ctx, grouped_scores(ctx, experience))
        experience.tensors |= {name: value.to(experience["x0"].device) for name, value in weights.items()}
        experience.metrics |= metrics
        return experience

    def _roll(
        self, ctx: Ctx, plan: RolloutPlan, text: torch.Tensor, ids: list[int]
    ) -> tuple[Rollout, torch.Tensor | None]:
        """The groups of all prompts. Unless rewards see the history, only its cache is kept, and its latents ``[P, f,
        C, H, W]`` where the codec needs them to decode the clips."""
        context, history = None, None
        if self.config.clip.score == "clip":
            context, history = _stream(ctx, text, plan.prefix, ctx.generators("history", ids))
            plan = replace(plan, prefix=0, record=tuple(range(plan.branch)))
        noise = ctx.student.draw_noise(plan, ctx.generators("rollout", ids))
        return ctx.student.rollout(text, plan, noise, context=context), history

    def _plan(self, ctx: Ctx | StepSizes) -> RolloutPlan:
        """Fork at a random chunk, the same on every rank."""
        chunks = self.config.clip.chunks
        self._check_clip(ctx.chunks)
        forks = ctx.chunks - max(chunks, 1) + 1
        prefix = int(torch.randint(forks, (), generator=ctx.shared_generator("fork")))
        branch = chunks or ctx.chunks - prefix
        record = tuple(range(prefix, prefix + branch))
        return RolloutPlan(prefix=prefix, branch=branch, group_size=self.config.group_size, record=record)

    def _judge(self, ctx: Ctx, scores: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Reward weight r and penalty weight of this rank's candidates ``[N]``, from scores ``[P, G]``; what to log."""
        config = self.config
        judged = compute_advantages(ctx, scores, combination=config.combine, normalise=config.advantage_std)
        weight, metrics = reward_weight(judged.advantage.flatten(), config.advantage_clip), judged.metrics
        weights = {"reward_weight": weight, "signal": group_weights(judged).repeat_interleave(config.group_size)}
        if config.kl.mode == "uniform":
            weights["kl_weight"] = torch.ones_like(weight)
        elif config.kl.mode == "selective":
            everyone = {name: value.flatten() for name, value in judged.scores.items()}
            selected = self._select(rank_discrepancy(everyone, self._primary(list(ctx.reward_weights))))
            weights["kl_weight"] = mine = selected.view(ctx.world_size, -1)[distributed.rank()].to(weight)
            chosen = int((mine > 0).sum())
            metrics |= {"objective/rho/mean": self.kl.rho, "objective/selected/mean": chosen / len(mine)}
        if config.kl.reset_drift is not None or config.kl.reset_every is not None:
            metrics["objective/reference_age/mean"] = float(self.kl.age)
        return weights, metrics

    def _primary(self, names: list[str]) -> str:
        """The reward whose favourites are suspected, of those with these names."""
        primary = self.config.kl.primary
        if len(names) < 2:
            raise UserError(
                "a selective penalty needs two rewards or more",
                where="objective.kl.mode",
                why=f"it looks for samples on which rewards disagree, and {names[0]} is the only one",
                fix="name a further reward, or use kl.mode: uniform",
            )
        if primary and primary not in names:
            raise UserError(
                f"the primary reward {primary!r} is not among the rewards",
                where="objective.kl.primary",
                fix=f"use {nearest(primary, names) or ' or '.join(names)}",
            )
        return primary or names[0]

    def _select(self, gap: torch.Tensor) -> torch.Tensor:
        """Weight of the penalty of every sample, ``[N]``, whose mean over the batch is the mean over the chosen."""
        mean = mean_gap(gap)
        self.kl.rho = adapt_rho(self.kl.rho, mean, self.kl.gaps)
        self.kl.gaps = [*self.kl.gaps, mean][-BUFFER:]
        mask = uncertain(gap, self.kl.rho)
        return mask.double() * len(gap) / mask.sum().clamp(min=1)

    # --- loss ---

    def loss(self, ctx: Ctx, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, config = micro_batch.data, self.config
        assert data.context is not None, "the candidates fork from a history, which may be empty"
        x0, weight = data["x0"], data["reward_weight"]
        shared = config.group_size if config.loss_noise == "group" else 1
        generators = ctx.generators("loss", [sample // shared * shared for sample in data["sample"].tolist()])
        noise = ctx.normal(x0.shape[1:], generators)
        sigma = sample_sigmas(
            ctx,
            generators,
            x0.shape[1] // ctx.chunk_frames,
            each=False,
            first=data.context.frames == 0,
            sigma_max=config.sigma_max,
            sigma_min=config.sigma_min,
        )
        x_t = add_noise(x0, noise, sigma)

        def predict() -> torch.Tensor:
            velocity = ctx.student.velocity(x_t, sigma, data.features, data.context, clean=x0)
            return velocity if config.space == "velocity" else x_t - expand_sigma(sigma, x_t) * velocity

        target = x0 if config.space == "x0" else noise - x0
        current = predict()
        old = old_prediction(ctx, predict, current, config.old_decay)
        clip = config.advantage_clip if config.weighting == "adaptive" else None
        policy = forward_process_loss(current, old, target, weight, beta=config.beta, advantage_clip=clip)
        loss = (data["signal"] * policy).mean()
        metrics, sums = {"objective/policy/mean": loss.detach()}, {}
        if config.kl.mode != "none":
            with torch.no_grad(), ctx.policy("reference"):
                reference = predict()
            distance, chosen = reference_penalty(current, reference), data["kl_weight"]
            penalty = (chosen * distance).mean()
            loss = loss + config.kl.weight * penalty
            metrics["objective/kl/mean"] = penalty.detach()
            sums = _drift(distance.detach(), chosen > 0, target)
        alphas, counts = _alphas(weight, sigma[:, -1])
        return LossOut(loss, metrics | alphas, sums, counts)

    def cost(self, sizes: StepSizes) -> Cost:
        """Rollout, the replay behind the on-policy gauge, and the current, old and reference forwards of the loss."""
        config, plan = self.config, self._plan(sizes)
        clips = sizes.prompts * plan.group_size
        policies = (2 + (config.kl.mode != "none")) * config.inner_updates - (config.old_decay == 0)
        passes = plan.group_size + policies * clips
        forwards = sizes.rollout(plan) + passes * sizes.teacher_forcing(plan.branch)
        return Cost(forwards=forwards, reward_calls=clips * sizes.rewards)

    def after_step(self, ctx: Ctx) -> None:
        if ctx.sums:
            self._reset_reference(ctx)
        decay_old(ctx, self.config.old_decay)

    def _reset_reference(self, ctx: Ctx) -> None:
        """``reference <- current`` when the penalised samples have drifted far, or when the reference is old."""
        config, state = self.config.kl, self.kl
        total = {name: float(value) for name, value in ctx.sums.items()}
        drift, variance = total["penalty"] / max(total["penalised"], 1), total["variance"] / total["samples"]
        state.age += 1
        state.variance = 0.9 * state.variance + 0.1 * variance if state.variance else variance
        far = config.reset_drift is not None and drift > config.reset_drift * state.variance
        stale = config.reset_every is not None and state.age >= config.reset_every
        if far or stale:
            ctx.policies.copy("current", "reference")
            state.age = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.kl)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl = KLState(**state)


def _stream(
    ctx: Ctx, text: torch.Tensor, chunks: int, generators: list[torch.Generator]
) -> tuple[Context, torch.Tensor | None]:
    """The cache behind `chunks` generated chunks of ``[B, L, D]`` texts, one chunk of noise at a time; their latents
    ``[B, f, C, H, W]`` if the codec remembers."""
    context, one = ctx.student.begin(text), RolloutPlan(prefix=0, branch=1, keep_final=True)
    kept: list[torch.Tensor] = []
    for _ in range(chunks):
        noise = ctx.student.draw_noise(one, generators)
        rolled = ctx.student.rollout(text, one, noise, context=context)
        assert rolled.final is not None, "the plan keeps the final context"
        context = rolled.final
        if ctx.codec.remembers:
            kept.append(rolled.latents)
    return context, torch.cat(kept, 1) if kept else None


def _alphas(weight: torch.Tensor, sigma: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Mean reward weight of the samples ``[N]`` at each noise level, and how many these are."""
    level = sigma.double().round(decimals=2)
    here = {f"objective/alpha_{value:.2f}/mean": level == value for value in level.unique().tolist()}
    return {name: weight[rows].mean() for name, rows in here.items()}, {k: int(rows.sum()) for k, rows in here.items()}


def _drift(distance: torch.Tensor, chosen: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `after_step` wants of the samples ``[N]``: sums of the penalty and of the target's variance."""
    variance = target.detach().flatten(1).float().var(1)
    sums = {"penalty": (distance * chosen).sum(), "penalised": chosen.sum()}
    return sums | {"variance": variance.sum(), "samples": torch.ones_like(variance).sum()}
