"""One step of a recipe, phase by phase, with a meter beside it: traced, or run on a device.

It is an update, so that optimisers have their state, then what the first step of a run does: rewards that learn warm up
(one of their steps), collect, judge, and the phases of the objective. Prompt features are zeros, rewards that do not
learn are numbers, clips of a teacher are grey; networks of students, teachers and rewards that learn are of their real
size. Of the micro-batches of one size two are run: the first allocates the gradients, and every later one finds them as
the second does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from vidalign import registry
from vidalign.bench.dry import OFFERS, dry_rewards, dry_teacher
from vidalign.build import Parts, assemble, build_objective, build_student, student_kind
from vidalign.context import Batch
from vidalign.data.source import open_source
from vidalign.engine.blueprint import STUDENT
from vidalign.engine.config import EngineConfig
from vidalign.engine.plain import PlainEngine
from vidalign.errors import UserError
from vidalign.objectives.mixture import MixedBatch, MixedExperience, Mixture
from vidalign.rewards.base import CompositeReward, TrainableReward
from vidalign.teachers.base import PreparedTeacher
from vidalign.teachers.language import LanguageTeacher
from vidalign.teachers.network import NetworkTeacher
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import judge_experience

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.data.source import PromptSource
    from vidalign.engine.base import Engine
    from vidalign.engine.meter import Meter
    from vidalign.objectives.base import Experience, Objective, Phase
    from vidalign.recipe import Recipe


@dataclass
class Sizes:
    """Bytes of one step."""

    held: dict[str, int] = field(default_factory=dict)
    """What lies there through the whole step: weights, adapters, optimiser state."""
    phases: dict[str, int] = field(default_factory=dict)
    """The peak of every phase of the step, all that is held included."""
    contexts: dict[str, int] = field(default_factory=dict)
    """The past that each rollout leaves for its loss."""
    gradients: dict[str, int] = field(default_factory=dict)
    """By phase, of those that have any."""


def first_steps(recipe: Recipe) -> list[int]:
    """Steps in which objectives begin to take part."""
    return sorted({part.start for part in recipe.objectives.values()}) or [0]


def prompts_of(recipe: Recipe, prompts: int, step: int) -> tuple[PromptSource, Batch]:
    """The source of a recipe and the first so many prompts of a step; sources draw numbers, so it is not traced."""
    source = open_source(recipe.training_prompts, recipe.seed, recipe.trainer.prompts_per_step)
    first = step * recipe.trainer.prompts_per_step
    ids = list(range(first, first + prompts))
    return source, Batch(step, [source[n] for n in ids], ids)


class Step:
    """A step on `device`; real: with the weights of the recipe, else with ones that have no values. Raises `UserError`
    where a part cannot be made."""

    def __init__(self, recipe: Recipe, meter: Meter, device: torch.device, given: tuple[PromptSource, Batch]) -> None:
        self.meter, self.sizes = meter, Sizes()
        self._peaks: list[int] = []
        """Of the phases that are open."""
        self.objective = build_objective(recipe)
        kind, real = student_kind(recipe), device.type != "meta"
        bare = kind.unloaded(recipe.student)
        student, features, codec = bare
        if real:
            student, codec = build_student(recipe), kind.codec(student.spec)
        student.gradient_checkpointing(recipe.student.checkpointing)
        student.rollout_batch = recipe.trainer.rollout_batch
        rewards = _rewards(recipe, student.spec, features, device, len(given[1].ids))
        source, self.batch = given
        offer = _offer(recipe, self.objective, rewards)
        teacher = dry_teacher(recipe, offer, bare[0], bare[2], partial(_network, recipe, real))
        config = recipe.teacher.config if recipe.teacher is not None else None
        if isinstance(teacher, NetworkTeacher) and isinstance(config, teacher.Config):
            teacher.configure(config)
        if isinstance(teacher, LanguageTeacher):
            teacher.check_student(student)
            if isinstance(config, teacher.Config):  # what is traced lies beside the student
                teacher.place(config if real else replace(config, device="", offload=False))
        if isinstance(teacher, PreparedTeacher):
            teacher.prepare(self.batch.prompts, features)
        with device:
            decoder = kind.decoder(recipe.student)
        parts = Parts(student, teacher, rewards, source, features, codec, decoder)
        with torch.random.fork_rng(devices=[]):
            self.ctx: TrainContext = assemble(_plain(recipe), self.objective, parts, Tracker.silent(), device)
        self.ctx.step = self.batch.step

    def run(self) -> Sizes:
        """Run it once."""
        ctx, sizes = self.ctx, self.sizes
        for role, engine in ctx.roles.engines.items():
            with self.phase(_of("update", role), engine), ctx.roles.phase(role):
                engine.step()
        sizes.held = self.held()
        with self.learning():
            if ctx.step == 0 and ctx.rewards is not None:
                ctx.rewards.warm_up(ctx.prompts)
            with self.decoding(), self.phase("rollout"), torch.no_grad():
                experience = self.objective.collect(ctx, self.batch)
            with self.phase("judge"):
                experience = judge_experience(ctx, self.objective, experience)
        sizes.contexts = _contexts(experience)
        for phase in self.objective.phases(ctx.step):
            self.train(experience, phase)
        return sizes

    @contextmanager
    def phase(self, name: str, trains: Engine | None = None) -> Iterator[None]:
        """Its peak is that of what runs inside; the peak of the phase around it leaves that out. trains: the engine
        that gathers gradients in it."""
        before = self.meter.restart()
        if self._peaks:
            self._peaks[-1] = max(self._peaks[-1], before)
        self._peaks.append(0)
        try:
            yield
        finally:
            peak = max(self._peaks.pop(), self.meter.restart())
            self.sizes.phases[name] = max(self.sizes.phases.get(name, 0), peak)
            if trains is not None:
                self.sizes.gradients[name] = sum(p.nbytes for p in trains.trainable)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Calls of the codec are a phase of their own."""
        decode = self.ctx.decode

        def watched(*latents: Any) -> torch.Tensor:
            with self.phase("decode"):
                return decode(*latents)

        with mock.patch.object(self.ctx, "decode", watched):
            yield

    @contextmanager
    def learning(self) -> Iterator[None]:
        """So are the steps of rewards that learn."""
        with ExitStack() as stack:
            for reward in self.ctx.rewards.trainable if self.ctx.rewards else ():
                for call, name in (("learn", "loss"), ("warm_up", "warm-up")):
                    stack.enter_context(mock.patch.object(reward, call, self._watched(reward, call, name)))
            yield

    def _watched(self, reward: TrainableReward, call: str, name: str) -> Any:
        plain, engine = getattr(reward, call), self.ctx.roles.engines[reward.role]

        def watched(*arguments: Any) -> None:
            with self.phase(_of(name, reward.role), engine):
                plain(*arguments)

        return watched

    def held(self) -> dict[str, int]:
        """What lies there now."""
        policies, engines = self.ctx.policies, self.ctx.roles.engines
        sets = {"trained weights": policies.nbytes("current")}
        sets |= {f"weights `{name}`": policies.nbytes(name) for name in policies.names}
        snapshots = 0 if policies.adapter else sum(policies.nbytes(name) for name in policies.names)
        seen: set[int] = set()  # networks may share weights, which the first of them has
        whole = {role: _nbytes(network, seen) for role, network in self.ctx.roles.networks().items()}
        out = {"frozen weights": whole.pop(STUDENT) + snapshots - sum(sets.values()), **sets}
        out |= {_of("weights" if role in engines else "network", role): size for role, size in whole.items()}
        out["codec"] = _nbytes(self.ctx.codec)
        out["decoder"] = _nbytes(self.ctx.decoder) if self.ctx.decoder is not None else 0
        out |= {_of("optimiser", role): _state(engine) for role, engine in engines.items() if role != STUDENT}
        out["optimiser"] = self.meter.held - sum(out.values())
        return {name: size for name, size in out.items() if size}

    def train(self, experience: Experience, phase: Phase) -> None:
        """Micro-batches, two of every size, and the update."""
        ctx, role, seen = self.ctx, phase.role, Counter[tuple[str, int]]()
        with ctx.roles.phase(role) as engine:
            with self.phase(_of("loss", role), engine):
                for piece in self.objective.micro_batches(ctx, experience, phase):
                    label = piece.label if isinstance(piece, MixedBatch) else ""
                    seen[label, len(piece.data)] += 1
                    if seen[label, len(piece.data)] <= 2:
                        engine.backward(self.objective.loss(ctx, piece, phase).loss * piece.weight)
            with self.phase(_of("update", role), engine):
                engine.step()


def _of(what: str, role: str) -> str:
    """The name of something of a role; the student's has none."""
    return what if role == STUDENT else f"{what} of `{role}`"


def _contexts(experience: Experience) -> dict[str, int]:
    """Bytes of every context, by name."""
    parts = experience.parts if isinstance(experience, MixedExperience) else {STUDENT: experience}
    found = {_of("context", label): part.context for label, part in parts.items()}
    return {name: context.nbytes for name, context in found.items() if context is not None}


def _nbytes(network: Any, seen: set[int] | None = None) -> int:
    """Bytes of the weights of a network but those in `seen`, to which they are added. Weights are one where their
    storage is: copies of a network on the meta device share it."""
    own = {p.untyped_storage()._cdata: p.nbytes for p in network.parameters()}
    new = {key: size for key, size in own.items() if seen is None or key not in seen}
    if seen is not None:
        seen.update(own)
    return sum(new.values())


def _state(engine: Engine) -> int:
    """Bytes of an optimiser's state."""
    assert isinstance(engine, PlainEngine), "a step is run by engines of torch alone"
    values = [value for state in engine.optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def _plain(recipe: Recipe) -> Recipe:
    """Run by one process and logging nothing."""
    precision = "bf16" if recipe.engine.precision == "auto" else recipe.engine.precision
    tracking, trainer = replace(recipe.tracking, clips_every=0), replace(recipe.trainer, score_ahead=False)
    return replace(recipe, engine=EngineConfig(precision=precision), tracking=tracking, trainer=trainer)


def _rewards(recipe: Recipe, spec: Any, features: Any, device: torch.device, prompts: int) -> CompositeReward | None:
    """Rewards that learn with networks of their own; numbers in the place of the others."""
    dry = dry_rewards(recipe.reward_weights)
    if dry is None:
        return None
    made: dict[str, Any] = dict(dry.rewards)
    for name, choice in recipe.rewards.items():
        kind = registry.get("rewards", choice.name)
        if isinstance(kind, type) and issubclass(kind, TrainableReward):
            with device:
                made[name] = kind.from_recipe(_short_warm_up(recipe, prompts), spec, features)
    return CompositeReward(made, recipe.reward_weights)


def _short_warm_up(recipe: Recipe, prompts: int) -> Recipe:
    """With one step of the warm-up, of this process' share of its prompts."""
    section = recipe.discriminator
    if section is None:
        return recipe
    whole = section.config.warm_up
    share = max(1, whole.prompts * prompts // recipe.trainer.prompts_per_step)
    short = replace(whole, max_steps=min(1, whole.max_steps), prompts=share)
    return replace(recipe, discriminator=replace(section, config=replace(section.config, warm_up=short)))


def _offer(recipe: Recipe, objective: Objective, rewards: CompositeReward | None) -> str:
    """What the teacher must offer to the objectives and to rewards that learn; empty where nothing needs it."""
    objectives = objective.objectives.values() if isinstance(objective, Mixture) else [objective]
    learning = rewards.trainable if rewards else []
    offers = {one.needs.teacher for one in objectives} | {one.teacher_offers for one in learning}
    offers -= {""}
    if len(offers) > 1 or not offers <= set(OFFERS):
        raise UserError(
            f"the step of {recipe.name} cannot be planned",
            where="teacher",
            why=f"its teacher offers {' and '.join(sorted(offers))}: nothing stands in for it",
            fix=f"plan with a teacher of one of {', '.join(OFFERS)}",
        )
    return next(iter(offers), "")


def _network(recipe: Recipe, real: bool) -> Any:
    """The network of the recipe's teacher; one like the student's where the teacher names no weights of that kind."""
    kind, choice = student_kind(recipe), replace(recipe.student, adapter=None)
    path = getattr(recipe.teacher.config, "path", "") if recipe.teacher is not None else ""
    if path:
        choice = replace(choice, path=path, init=None, config=kind.Config())
    return kind.build(choice, recipe.seed) if real else kind.unloaded(choice)[0]
