"""What a step of a recipe holds on one accelerator, phase by phase, before anything is loaded.

The recipe's own code runs on a device without memory (`vidalign.engine.traced`), with a student of its real size: one
update, then collect, judge and the loss, as every step after the first. Not traced: reward models, rewards that learn,
and prompt encoders.

Two things are left out because they repeat. Of the micro-batches of one size two are run: the first allocates the
gradients, and every later one finds them as the second does. A random fork or pivot is at its end; where one is drawn,
the step is traced with the first one too, and the larger peak counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from vidalign.bench.dry import dry_rewards, dry_teacher
from vidalign.build import Parts, assemble, build_objective, student_kind
from vidalign.context import Batch
from vidalign.data.source import open_source
from vidalign.engine.config import EngineConfig
from vidalign.engine.traced import DEVICE, LiveBytes, traced
from vidalign.errors import UserError, first_line
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import judge_experience

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.objectives.base import Experience, Phase
    from vidalign.recipe import Recipe


WITH_GRADIENT = ("loss", "update")
"""Phases that hold gradients."""


@dataclass(frozen=True)
class Plan:
    """Bytes of one step on one accelerator."""

    held: dict[str, int]
    """What lies there through the whole step: weights, adapters, optimiser state."""
    phases: dict[str, int]
    """The peak of every phase of the step, all that is held included."""
    parts: dict[str, int]
    """What is known of the phases' own tensors: ``context``, which the rollout leaves, and ``gradients``."""

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max(self.phases.values())

    @property
    def at(self) -> str:
        """The phase with the largest peak."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def largest_phase(self) -> dict[str, int]:
        """What the peak is made of beside `held`."""
        with_gradient = self.at in WITH_GRADIENT
        own = {name: size for name, size in self.parts.items() if name != "gradients" or with_gradient}
        rest = self.peak - sum(self.held.values()) - sum(own.values())
        return own | {f"tensors of `{self.at}`": rest}


def plan_step(recipe: Recipe, gpus: int = 1) -> Plan:
    """The plan of a recipe on so many accelerators. Raises `UserError` for a kind of student that cannot be planned."""
    plan, drawn = trace_step(recipe, gpus, last=True)
    return max(plan, trace_step(recipe, gpus, last=False)[0], key=lambda one: one.peak) if drawn else plan


def trace_step(recipe: Recipe, gpus: int = 1, *, last: bool = True) -> tuple[Plan, bool]:
    """The plan with random forks at the last place (or the first one), and whether there is such a fork."""
    with traced(last=last) as live:
        try:
            plan = _Step(recipe, gpus, live).run()
        except NotImplementedError as error:
            what = f"the step of {recipe.name} cannot be traced"
            raise UserError(what, why=f"it needs values: {first_line(error)[:160]}") from error
    return divided(plan, recipe.engine, gpus), live.drawn


def divided(plan: Plan, engine: EngineConfig, gpus: int) -> Plan:
    """The plan of one of several processes: DeepSpeed divides optimiser state (ZeRO 1), gradients (2) and weights (3);
    a plain engine averages gradients in a flat copy. A rollout has whole weights, see `Engine.gathered`."""
    held, phases, parts = dict(plan.held), dict(plan.phases), dict(plan.parts)
    saved, away = 0, 1 - 1 / gpus
    trained = [name for name in phases if name in WITH_GRADIENT]
    if engine.name != "deepspeed":
        phases |= {name: phases[name] + 2 * parts["gradients"] for name in phases if name == "update" and gpus > 1}
        return Plan(held, phases, parts)
    if engine.zero_stage >= 1 or engine.offload != "none":
        saved = int(held["optimiser"] * (1 if engine.offload != "none" else away))
        held["optimiser"] -= saved
        phases = {name: size - saved for name, size in phases.items()}
    if engine.zero_stage >= 2:
        less = int(parts["gradients"] * away)
        parts["gradients"] -= less
        phases |= {name: phases[name] - less for name in trained}
    if engine.zero_stage == 3:
        weights = sum(size for name, size in held.items() if "weights" in name)
        phases |= {name: phases[name] - int(weights * away) for name in trained}
    return Plan(held, phases, parts)


class _Step:
    """One step, traced."""

    def __init__(self, recipe: Recipe, gpus: int, live: LiveBytes) -> None:
        self.live = live
        student, features, codec = student_kind(recipe).unloaded(recipe.student)
        self.objective = build_objective(recipe)
        if recipe.objectives or self.objective.needs.discriminator:
            raise UserError(
                f"the step of {recipe.name} cannot be planned",
                where="objectives" if recipe.objectives else "objective.name",
                why="several objectives, and those that need a discriminator, are not traced",
                fix="plan a recipe with one of the objectives alone" if recipe.objectives else "",
            )
        self.phases: dict[str, int] = {}
        self.parts: dict[str, int] = {}
        prompts = max(1, recipe.trainer.prompts_per_step // gpus)
        source = open_source(recipe.training_prompts, recipe.seed, recipe.trainer.prompts_per_step)
        self.batch = Batch(0, [source[n] for n in range(prompts)], list(range(prompts)))
        student.gradient_checkpointing(recipe.student.checkpointing)
        student.rollout_batch = recipe.trainer.rollout_batch
        parts = Parts(
            student=student,
            teacher=dry_teacher(recipe, self.objective, student, codec, lambda: _network(recipe)),
            rewards=dry_rewards(recipe.reward_weights),
            prompts=source,
            features=features,
            codec=codec,
        )
        plain = replace(
            recipe,
            engine=EngineConfig(precision="bf16" if recipe.engine.precision == "auto" else recipe.engine.precision),
            tracking=replace(recipe.tracking, clips_every=0),
        )
        with torch.random.fork_rng(devices=[]):
            self.ctx: TrainContext = assemble(plain, self.objective, parts, Tracker.silent(), DEVICE)

    def run(self) -> Plan:
        """The step: an update, so that the optimisers have their state, then all that a later step does."""
        self.update()
        held = self.held()
        self.parts["gradients"] = sum(p.nbytes for e in self.ctx.roles.engines.values() for p in e.trainable)
        with self.decoding(), self.phase("rollout"), torch.no_grad():
            experience = self.objective.collect(self.ctx, self.batch)
        with self.phase("judge"):
            experience = judge_experience(self.ctx, self.objective, experience)
        if experience.context is not None:
            self.parts["context"] = experience.context.nbytes
        for phase in self.objective.phases(0):
            self.train(experience, phase)
        return Plan(held, self.phases, self.parts)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Its peak is that of what runs inside; the peak of the phase around it leaves that out."""
        outer = self.live.restart()
        try:
            yield
        finally:
            self.phases[name] = max(self.phases.get(name, 0), self.live.restart())
            self.live.peak = max(self.live.held, outer)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Calls of the codec are a phase of their own."""
        ctx = self.ctx
        decode = ctx.decode

        def watched(*latents: Any) -> torch.Tensor:
            with self.phase("decode"):
                return decode(*latents)

        with mock.patch.object(ctx, "decode", watched):
            yield

    def update(self) -> None:
        """One update of every role, of gradients that are zero."""
        for role in self.ctx.roles.engines:
            with self.phase("update"), self.ctx.roles.phase(role) as engine:
                engine.step()

    def held(self) -> dict[str, int]:
        """What lies there now."""
        policies, networks = self.ctx.policies, self.ctx.roles
        sets = {"trained weights": policies.nbytes("current")}
        sets |= {f"weights `{name}`": policies.nbytes(name) for name in policies.names}
        every = {id(p): p for network in networks.networks() for p in network.parameters()}.values()  # some are shared
        codec = sum(p.nbytes for p in self.ctx.codec.parameters())
        snapshots = 0 if policies.adapter else sum(policies.nbytes(name) for name in policies.names)
        weights = sum(p.nbytes for p in every)
        out = {"frozen weights": weights + snapshots - sum(sets.values()), **sets, "codec": codec}
        out["optimiser"] = self.live.held - sum(out.values())
        return {name: size for name, size in out.items() if size}

    def train(self, experience: Experience, phase: Phase) -> None:
        """Micro-batches, two of every size, and the update."""
        ctx, seen = self.ctx, Counter[int]()
        with ctx.roles.phase(phase.role) as engine:
            with self.phase("loss"):
                for piece in self.objective.micro_batches(ctx, experience, phase):
                    seen[len(piece.data)] += 1
                    if seen[len(piece.data)] <= 2:
                        engine.backward(self.objective.loss(ctx, piece, phase).loss * piece.weight)
            with self.phase("update"):
                engine.step()


def _network(recipe: Recipe) -> Any:
    """A network like the student's."""
    network, *_ = student_kind(recipe).unloaded(recipe.student)
    return network
