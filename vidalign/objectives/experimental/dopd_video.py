"""DOPD for causal few-step video students: an extension of dual on-policy distillation (arXiv 2606.30626) that is in no
paper. Under the re-noising sampler the student is a Gaussian policy and a token is a unit u = (chunk, patch block,
denoising step).

One step:
1. the student rolls out whole videos; each draws one denoising step. All of its chunks are predicted again at that step
   by the student v_S, and with privileged input p by the same weights v_S^p and by a frozen few-step teacher v_T^p;
2. exact split ``v_T^p - v_S = C + I``: capability ``C = v_T^p - v_S^p`` and information ``I = v_S^p - v_S``;
3. per unit the gap ``A = w_k mean|C|^2`` (`losses/gaussian_policy.py`), c in [0, 1] how consistent p is with the
   rollout, g whether the rewards prefer the teacher's x0 to the privileged student's (without rewards: whether the
   teacher is nearer to the student). Trimmed means per step and chunk over all ranks route it to the target
   ``v_S + a C + b I``:
   LH  A low, c high   (1, c)  4x4-pooled KL      0.6
   LL  A low, c low    (0, c)  4x4-pooled KL      0.3
   HT  A high, g       (1, c)  full, robust       1
   HS  A high, not g   (0, c)  4x4-pooled KL      0.6
4. a share `privileged_share` of the steps trains the student *with* p towards v_T^p, so that v_S^p stays in
   distribution.

Every policy has its own pass over the clean chunks, with its own text: p never enters the student's own keys and
values.
Exact: without p, I is 0 and LL and HS have neither value nor gradient; with an equal teacher nothing has.
Controls: `privilege: none`, `pairing: shuffled`, `targets: uniform` with (1, 0) or (1, 1), `targets: literal` (the
paper's two-policy targets (1, 1) and (0, 1)), HT only by weights of 0.
Not here: boxes and tracks, a clean first frame, the clean target as privilege.
Knobs that matter: learning rate, privilege, teacher, block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.cost import Cost
from vidalign.engine import distributed
from vidalign.errors import UserError
from vidalign.losses import gaussian_policy as policy
from vidalign.losses.advantages import combine
from vidalign.losses.flow_matching import expand_sigma
from vidalign.losses.routing import Regime, fractions, route, trimmed_mean
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.rollouts import candidate_ids, replay_gap, roll_videos, states_at
from vidalign.objectives.parts.scoring import motion
from vidalign.ranges import require
from vidalign.rewards.base import ScoreRequest
from vidalign.students.video.rollout import Rollout, RolloutPlan
from vidalign.teachers.privilege import dense_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import Batch, TrainContext
    from vidalign.cost import StepSizes
    from vidalign.students.video import VideoStudent
    from vidalign.teachers.base import CausalTeacher

    Context = TrainContext[VideoStudent, CausalTeacher]

POOL = 4
VELOCITIES = ("bare", "own", "teacher")
"""What `_velocities` returns, kept until the judgement."""
NAMES = tuple(regime.name.lower() for regime in Regime)


@dataclass
class RegimeWeights:
    """Factor of the loss of every regime; 0 leaves it out."""

    lh: float = 0.6
    """Low gap, p consistent with the rollout."""
    ll: float = 0.3
    """Low gap, p less consistent."""
    ht: float = 1.0
    """High gap, the teacher endorsed."""
    hs: float = 0.6
    """High gap, the teacher not endorsed."""

    def __post_init__(self) -> None:
        require(self, *NAMES, least=0)


class DOPDVideo(Objective):
    name = "dopd_video"
    needs = Needs(teacher="few_step")

    @dataclass
    class Config:
        group_size: int = 1
        """Rollouts per prompt."""
        privilege: Literal["caption", "dense_prompt", "future", "none"] = "caption"
        """caption: of the student's own rollout (embedded world); dense_prompt: from `dense_prompts`; future: the later
        clean frames of the rollout."""
        dense_prompts: str = ""
        """JSON file, an object from prompts to denser ones."""
        pairing: Literal["own", "shuffled"] = "own"
        """shuffled: every sample gets the privilege of one of the step's next prompt, a control."""
        targets: Literal["routed", "literal", "uniform"] = "routed"
        """literal: the teacher or the privileged student as a whole; uniform: one target for all units."""
        capability: float = 1.0
        """a of uniform targets."""
        information: float = 0.0
        """b of uniform targets."""
        block: int = 8
        """Width of a unit in latent pixels, a multiple of 4."""
        trim: float = 0.05
        """Share of the largest values that the thresholds leave out."""
        weights: RegimeWeights = field(default_factory=RegimeWeights)
        """Factor of every regime."""
        privileged_share: float = 0.15
        """Share of the steps that train the student with p in its input, in 0..1."""

        def __post_init__(self) -> None:
            if self.block < POOL or self.block % POOL:
                raise ValueError(f"block must be a multiple of {POOL}")
            require(self, "trim", least=0, below=1)
            require(self, "privileged_share", least=0, most=1)
            if (self.privilege == "dense_prompt") != bool(self.dense_prompts):
                raise ValueError("dense_prompts and privilege: dense_prompt belong together")

    config: Config

    def check_models(self, student: VideoStudent, teacher: CausalTeacher) -> None:
        self._check_block(*student.chunk_shape[2:])

    def fit(self, around: Around) -> None:
        if around.frame is not None:
            self._check_block(*around.frame[1:])
        if self.config.pairing == "shuffled":
            distributed.check_others(around.prompts)

    def _check_block(self, height: int, width: int) -> None:
        """Latent frames of that size hold whole units."""
        block, common = self.config.block, gcd(height, width)
        if common % block:
            fits = [str(n) for n in range(POOL, common + 1, POOL) if common % n == 0]
            raise UserError(
                f"blocks of {block} do not divide latents of {height} x {width}",
                where="objective.block",
                fix=f"use {' or '.join(fits)}" if fits else f"no multiple of {POOL} divides both: use another size",
            )

    # --- collect ---

    def collect(self, ctx: Context, batch: Batch) -> Experience:
        group_size, text = self.config.group_size, ctx.text(batch.prompts)
        rollout = roll_videos(ctx, text, batch.ids, group_size)
        samples = candidate_ids(ctx, batch.ids, group_size)
        tensors = states_at(rollout, ctx.uniform((), ctx.generators("step", samples.tolist()))) | {"sample": samples}
        tensors["weight"] = _weights(rollout, tensors["step"])
        tensors["privileged"] = torch.full((len(samples),), self._present(ctx))
        group_index = torch.arange(len(batch.prompts)).repeat_interleave(group_size)
        data = Experience(tensors, group_index, text, batch.prompts)
        clips = ctx.decode(rollout.latents)
        self._add_privilege(ctx, data, clips)
        data.tensors |= dict(zip(VELOCITIES, self._velocities(ctx, data), strict=True))
        data.metrics = motion(clips)
        ctx.show(clips, [batch.prompts[g] for g in group_index.tolist()], {})
        data.request = self._request(ctx, data)
        return data

    def _request(self, ctx: Context, data: Experience) -> ScoreRequest | None:
        """The teacher's x0 of every sample, then the privileged student's; nothing where there is no reward."""
        if ctx.rewards is None:
            return None
        level = expand_sigma(data["sigma"], data["x_t"])
        clips = [ctx.decode(data["x_t"] - level * data[name]) for name in ("teacher", "own")]
        return ScoreRequest(torch.cat(clips), data.prompts, data.group_index.repeat(2))

    def digest(self, ctx: Context, experience: Experience) -> Experience:
        velocities = [experience.tensors.pop(name) for name in VELOCITIES]
        experience.metrics |= self._route(ctx, experience, *velocities)
        return experience

    def _add_privilege(self, ctx: Context, data: Experience, clips: Tensor) -> None:
        """Tensor ``privilege``: text features ``[N, L, D]`` or latents ``[N, F, C, H, W]``; none without privilege."""
        kind, prompts = self.config.privilege, data.prompt_of_candidate
        if kind == "none":
            return
        if kind == "future":
            privilege = data["latents"]
        else:
            texts = ctx.prompts.describe(clips, prompts) if kind == "caption" else self._dense(prompts)
            if texts is None:
                raise UserError(
                    "the prompts' source cannot describe what a clip shows",
                    where="objective.privilege",
                    why="only the embedded world can",
                    fix="use dense_prompt or future",
                )
            privilege = ctx.text(texts)
        if self.config.pairing == "shuffled":
            groups = ctx.gather(privilege).unflatten(0, (-1, data.group_size))
            privilege = groups[distributed.next_prompt_index(len(data.prompts))].flatten(0, 1)
        data.tensors["privilege"] = privilege

    def _dense(self, prompts: list[str]) -> list[str]:
        return dense_prompts(prompts, self.config.dense_prompts)

    def _velocities(self, ctx: Context, data: Experience) -> tuple[Tensor, Tensor, Tensor]:
        """v_S, v_S^p and v_T^p, ``[N, F, C, H, W]`` each, without gradient."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for piece in self.micro_batches(ctx, data, Phase()):
            bare = self._velocity(ctx, ctx.student, piece.data, privileged=False)
            own = bare
            if "privilege" in data.tensors:
                own = self._velocity(ctx, ctx.student, piece.data, privileged=True)
            parts.append((bare, own, self._velocity(ctx, ctx.teacher.model, piece.data, privileged=True)))
        bare, own, teacher = (torch.cat(column) for column in zip(*parts, strict=True))
        return bare, own, teacher

    def _velocity(self, ctx: Context, network: VideoStudent, data: Experience, *, privileged: bool) -> Tensor:
        """Velocity at the recorded states, every chunk on the clean chunks before it."""
        x_t, sigma, clean = data["x_t"], data["sigma"], data["latents"]
        if not privileged or self.config.privilege == "none":
            return network.velocity(x_t, sigma, data.features, None, clean=clean)
        if self.config.privilege != "future":
            return network.velocity(x_t, sigma, data["privilege"], None, clean=clean)
        return self._with_future(ctx, network, data)

    def _with_future(self, ctx: Context, network: VideoStudent, data: Experience) -> Tensor:
        """Chunk by chunk among its clean past and the clean future of `privilege`; the last chunk has no future."""
        x_t, sigma, chunk_frames = data["x_t"], data["sigma"], ctx.chunk_frames
        last = x_t.shape[1] - chunk_frames
        chunks = []
        for start in range(0, last, chunk_frames):
            here = slice(start, start + chunk_frames)
            frames = torch.cat(
                [data["latents"][:, :start], x_t[:, here], data["privilege"][:, start + chunk_frames :]], 1
            )
            levels = torch.zeros_like(sigma)
            levels[:, here] = sigma[:, here]
            chunks.append(network.bidirectional(frames, levels, data.features)[:, here])
        causal = network.velocity(x_t, sigma, data.features, None, clean=data["latents"])
        return torch.cat([*chunks, causal[:, last:]], 1)

    def _route(
        self,
        ctx: Context,
        data: Experience,
        bare: Tensor,
        own: Tensor,
        teacher: Tensor,
    ) -> dict[str, float]:
        """Add ``regime`` ``[N, chunks, h, w]`` and ``shift`` ``a C + b I``, like a velocity; returns what to log."""
        frames, block = ctx.chunk_frames, self.config.block
        x_t, level = data["x_t"], expand_sigma(data["sigma"], data["x_t"])
        capability, information = teacher - own, own - bare
        gap = policy.unit_gap(capability, data["weight"], frames, block)
        c = policy.consistency(x_t - level * bare, x_t - level * own, data["latents"])
        nearer = policy.unit_gap(teacher - bare, data["weight"], frames, block) <= policy.unit_gap(
            information, data["weight"], frames, block
        )
        endorsed = self._endorsed(ctx, data, nearer)
        gap_mean, c_mean = self._thresholds(ctx, gap, c, data["step"])
        units = c[:, None, None, None].expand_as(gap).double()
        regime = route(gap.double(), units, endorsed, gap_mean, c_mean)
        if self.config.targets == "uniform" or _is_privileged(data):
            regime = torch.full_like(regime, int(Regime.HT))
        a, b = self._coefficients(regime, units, privileged=_is_privileged(data))
        a, b = (policy.over_units(x.to(capability.dtype), frames, block) for x in (a, b))
        data.tensors |= {"regime": regime, "shift": a * capability + b * information}
        recorded = data["x0"]
        replay = float(ctx.gather(replay_gap(x_t - level * bare, recorded).view(1)).max())
        spread = policy.unit_gap(information, data["weight"], frames, block)
        means = {"capability": gap, "consistency": c, "information": spread, "endorsed": endorsed}
        metrics = {f"objective/{k}/mean": float(ctx.gather(v.double().mean()[None]).mean()) for k, v in means.items()}
        metrics["health/on_policy_gap/max"] = replay
        shares = fractions(ctx.gather(regime)).tolist()
        return metrics | {f"objective/share_{name}/mean": share for name, share in zip(NAMES, shares, strict=True)}

    def _endorsed(self, ctx: Context, data: Experience, nearer: Tensor) -> Tensor:
        """Whether the rewards prefer the teacher's x0, by clip; by unit `nearer` where there is no reward."""
        if not data.scores or not any(ctx.reward_weights.values()):
            return nearer
        totals = combine(data.scores, ctx.reward_weights, whitened=False).chunk(2)
        better, failed = totals[0] >= totals[1], (totals[0] - totals[1]).isnan()
        by_unit = [x.to(nearer.device)[:, None, None, None].expand_as(nearer) for x in (better, failed)]
        return torch.where(by_unit[1], nearer, by_unit[0])

    def _thresholds(self, ctx: Context, gap: Tensor, c: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Trimmed means of the gap and of c, ``[N, chunks, 1, 1]`` each, per chunk and its denoising step."""
        gaps, scores, steps = (ctx.gather(x) for x in (gap, c, step))
        gap_mean = torch.zeros(*step.shape, 1, 1, dtype=torch.float64, device=gap.device)
        c_mean = torch.zeros_like(gap_mean)
        for chunk in range(step.shape[1]):
            for k in step[:, chunk].unique().tolist():
                here, everywhere = step[:, chunk] == k, steps[:, chunk] == k
                c_mean[here, chunk] = trimmed_mean(scores[everywhere], self.config.trim)
                gap_mean[here, chunk] = trimmed_mean(gaps[everywhere, chunk].flatten(), self.config.trim)
        return gap_mean, c_mean

    def _coefficients(self, regime: Tensor, c: Tensor, *, privileged: bool) -> tuple[Tensor, Tensor]:
        """a and b of every unit."""
        ones = torch.ones_like(c)
        if privileged:
            return ones, 0 * ones  # the input holds p: what is left to learn is the capability
        if self.config.targets == "uniform":
            return self.config.capability * ones, self.config.information * ones
        taught = ((regime == Regime.LH) | (regime == Regime.HT)).to(c.dtype)
        return taught, ones if self.config.targets == "literal" else c

    def _present(self, ctx: Context | StepSizes) -> bool:
        """Whether p is in the student's input in this step; the same on every rank."""
        if self.config.privilege == "none":
            return False
        return bool(torch.rand((), generator=ctx.shared_generator("privileged")) < self.config.privileged_share)

    # --- loss ---

    def loss(self, ctx: Context, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, frames, block = micro_batch.data, ctx.chunk_frames, self.config.block
        velocity = self._velocity(ctx, ctx.student, data, privileged=_is_privileged(data))
        difference = velocity - velocity.detach() - data["shift"]  # at the update v is v_S (or v_S^p) itself
        full = policy.robust_loss(difference, data["weight"], frames, block)
        coarse = policy.coarse_loss(difference, data["weight"], frames, block, POOL)
        values = torch.where(data["regime"] == Regime.HT, full, coarse)
        factors = torch.tensor([getattr(self.config.weights, name) for name in NAMES], device=values.device)
        loss = (factors.to(values.dtype)[data["regime"]] * values).mean()
        parts = {name: values.detach() * (data["regime"] == n) for n, name in enumerate(NAMES)}  # add up, unweighted
        return LossOut(loss, {f"objective/loss_{name}/mean": part.mean() for name, part in parts.items()})

    def cost(self, sizes: StepSizes) -> Cost:
        """Three passes of every clip: bare, with p, and that of the loss; the teacher makes one. Future frames take a
        further pass over all chunks for every chunk but the last."""
        config, chunks = self.config, sizes.chunks
        rollout = sizes.rollout(RolloutPlan(prefix=0, branch=chunks, group_size=config.group_size))
        clips = sizes.prompts * config.group_size
        extra = chunks - 1 if config.privilege == "future" else 0
        bare = sizes.teacher_forcing(chunks)
        privileged = bare + extra * chunks
        passes = bare + (privileged if self._present(sizes) else bare)
        if config.privilege != "none":
            passes += privileged
        return Cost(
            forwards=rollout + clips * passes, reward_calls=2 * clips * sizes.rewards, teacher_calls=clips * (1 + extra)
        )


def _is_privileged(data: Experience) -> bool:
    """Whether the step trains the student with p in its input."""
    return bool(data["privileged"].all())


def _weights(rollout: Rollout, step: Tensor) -> Tensor:
    """Weight w of the denoising step of every chunk ``[N, chunks]``, for each frame ``[N, F]``."""
    columns = []
    for place, chunk in enumerate(sorted(rollout.states)):
        state = rollout.states[chunk]
        table = torch.tensor(policy.transition_weights(state.sigmas), dtype=torch.float64, device=step.device)
        columns.append(table[step[:, place]].unsqueeze(1).expand(-1, state.x_t.shape[2]))
    return torch.cat(columns, 1).to(rollout.latents.dtype)
