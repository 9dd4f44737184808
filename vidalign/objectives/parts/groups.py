"""Where AR-CoPO's groups come from (2603.17461): forked in every step, or drawn from a buffer (semi-on-policy)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from vidalign.cost import Cost, StepSizes
from vidalign.errors import UserError
from vidalign.objectives.parts.scoring import Judging
from vidalign.provenance import weights_hash
from vidalign.students.video.rollout import RolloutPlan
from vidalign.students.video.rollout.buffer import Buffer, ForkedGroups

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.engine.blueprint import PolicyRule
    from vidalign.rewards.base import ScoreRequest
    from vidalign.students.video import Context, VideoStudent

Neighbours = Literal["initial", "all"]


@dataclass
class Forked:
    """Groups, and the context before their pivot, one row a prompt."""

    groups: ForkedGroups
    context: Context
    request: ScoreRequest | None = None
    """What is to be judged; None where the groups hold their scores."""
    metrics: dict[str, float] = field(default_factory=dict)


class GroupSource(Protocol):
    """The groups of a step."""

    rule: PolicyRule
    """How ``old``, which rolled them out, moves."""

    def groups(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Forked:
        """Those of this rank, all of one pivot."""
        ...

    def cost(self, sizes: StepSizes) -> tuple[int, Cost]:
        """The pivot of a step, and what the groups cost."""
        ...


@dataclass
class OnPolicyGroups:
    """Forks at a random chunk, the same on every rank, rolled out by ``old``, which follows the student."""

    group_size: int
    noise_scale: float
    neighbours: Neighbours
    pivots: int
    """The pivot is one of the first so many chunks; 0 = any chunk."""
    rule: PolicyRule = "current"

    def check(self, chunks: int) -> None:
        """`UserError` where a video of so many chunks has too few for `pivots`."""
        if self.pivots > chunks:
            raise UserError(
                f"the pivot cannot be one of {self.pivots} chunks",
                where="objective.pivots",
                why=f"a video has {chunks}",
                fix="use fewer, or 0 for any chunk",
            )

    def plan(self, ctx: TrainContext[VideoStudent] | StepSizes) -> RolloutPlan:
        """Up to the pivot once, then every candidate to the end."""
        self.check(ctx.chunks)
        pivot = int(torch.randint(self.pivots or ctx.chunks, (), generator=ctx.shared_generator("pivot")))
        suffix = ctx.chunks - 1 - pivot
        return RolloutPlan(pivot, branch=1, suffix=suffix, group_size=self.group_size, record=(pivot,))

    def groups(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Forked:
        """Neighbours in the first noise of the pivot (or in all of its noise); the rest of the noise is shared."""
        plan, initial = self.plan(ctx), self.neighbours == "initial"
        noise = ctx.student.draw_noise(
            plan,
            ctx.generators("rollout", batch.ids),
            branch="neighbour" if initial else "neighbour_all",
            scale=self.noise_scale,
            suffix="shared",
        )
        judging = Judging(ctx, batch.prompts, plan.group_size)
        with ctx.policy("old"), ctx.gathered():
            rollout = ctx.student.rollout(ctx.text(batch.prompts), plan, noise, on_part=judging.add)
        request, metrics = judging.request()
        state, frames = rollout.states[plan.prefix], rollout.branch
        renoise = noise.renoise[:, : len(state.sigmas) - 1, frames].unflatten(0, (-1, self.group_size))
        groups = ForkedGroups(
            prompts=batch.prompts,
            pivot=plan.prefix,
            history=rollout.latents[:: self.group_size, : frames.start],
            initial=state.x_t[:, 0].unflatten(0, (-1, self.group_size)),
            renoise=(renoise[:, :1] if initial else renoise).to(rollout.latents.device),
            x0=state.x0.unflatten(0, (-1, self.group_size)),
            rewards={},
        )
        return Forked(groups, rollout.context, request, metrics)

    def settings(self, ctx: TrainContext[VideoStudent]) -> dict[str, Any]:
        """What shapes a group; a buffer records it."""
        first = ctx.student.spec.sampler.first_sigmas
        return {
            "objective.group_size": self.group_size,
            "objective.noise_scale": self.noise_scale,
            "objective.neighbours": self.neighbours,
            "objective.pivots": self.pivots,
            "data.frames": ctx.frames,
            "rewards": sorted(ctx.reward_weights),
            "sampler": ctx.sigmas,
            "chunk": list(ctx.student.chunk_shape),
            **({"sampler of the first chunk": first} if first else {}),
        }

    def cost(self, sizes: StepSizes) -> tuple[int, Cost]:
        """The rollout and the judgement of every candidate."""
        plan = self.plan(sizes)
        clips = sizes.prompts * plan.group_size
        return plan.prefix, Cost(forwards=sizes.rollout(plan), reward_calls=clips * sizes.rewards)


class StoredGroups:
    """Groups of a folder that ``vidalign collect`` wrote; ``old``, the student that made them, stays for good.

    fresh: how the run itself would fork; the buffer must have been made so.
    """

    rule: PolicyRule = "fixed"

    def __init__(self, path: str, fresh: OnPolicyGroups) -> None:
        self.path, self.fresh = path, fresh
        self._compared = False
        """Whether the buffer was compared with the run."""

    @cached_property
    def buffer(self) -> Buffer:
        """Opened at its first use; `DataError` when it is damaged."""
        return Buffer.open(self.path)

    def groups(self, ctx: TrainContext[VideoStudent], batch: Batch) -> Forked:
        """Drawn for this rank; the context is rebuilt from their latents under the old policy."""
        if not self._compared:
            self.buffer.check(student=weights_hash(ctx.policies.weights("old")), settings=self.fresh.settings(ctx))
            self._compared = True
        total = len(batch.ids) * ctx.world_size
        drawn = self.buffer.draw(total, ctx.shared_generator("buffer"))
        groups = self.buffer.read([drawn[i % total] for i in batch.ids]).to(ctx.device)
        text = ctx.text(groups.prompts)
        context = ctx.student.begin(text)
        if groups.pivot:
            with ctx.policy("old"), ctx.gathered():
                context = ctx.student.extend(context, groups.history, text)
        return Forked(groups, context)

    def cost(self, sizes: StepSizes) -> tuple[int, Cost]:
        """The clean passes that rebuild the context."""
        drawn = self.buffer.draw(sizes.prompts, sizes.shared_generator("buffer"))
        pivot = self.buffer.pivots()[drawn[0]]
        return pivot, Cost(forwards=sizes.prompts * pivot)
