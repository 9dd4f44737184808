"""From a checked recipe to live parts: student, policies, engines, teacher, rewards, prompt features, context."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from vidalign import registry
from vidalign.callbacks import CALLS, Callback
from vidalign.context import TrainContext
from vidalign.data.source import PromptSource, open_source
from vidalign.engine import distributed
from vidalign.engine.base import Engine, build_engine, set_precision
from vidalign.engine.blueprint import STUDENT, Blueprint
from vidalign.engine.policies import Policies
from vidalign.engine.roles import Roles
from vidalign.errors import RecipeError
from vidalign.guest import guarded, guest
from vidalign.losses.advantages import SignalFloor
from vidalign.objectives.mixture import Mixture
from vidalign.recipe.plugins import make
from vidalign.recipe.prompts import unscored, weighted
from vidalign.recipe.sharing import processes_of_a_group
from vidalign.rewards.base import CompositeReward, TrainableReward
from vidalign.students.base import Student
from vidalign.teachers.base import ChoosyTeacher, PlacedTeacher, PreparedTeacher, ReadingTeacher, network_of
from vidalign.tracking.base import TRACKER_CALLS, TrackerPlugin

if TYPE_CHECKING:
    from vidalign.objectives.base import Objective
    from vidalign.recipe import Recipe
    from vidalign.recipe.schema import Choice
    from vidalign.students.base import Generate, Student
    from vidalign.students.kind import StudentKind
    from vidalign.text.features import PromptFeatures
    from vidalign.tracking.tracker import Tracker


OBJECTIVE_CALLS = (
    "blueprint",
    "phases",
    "check_models",
    "collect",
    "digest",
    "micro_batches",
    "loss",
    "after_step",
    "cost",
    "state_dict",
    "load_state_dict",
)
REWARD_CALLS = ("blueprint", "attach", "warm_up", "learn", "state_dict", "load_state_dict")
"""Beside `score`, which `RewardCall` guards."""
TEACHER_CALLS = ("clips", "velocity", "few_step", "logits", "top_logprobs", "check_student", "prepare")
REWARDS = "rewards"
"""Folder in a run with the weights of the rewards that learn."""


def student_kind(recipe: Recipe) -> type[StudentKind[Any, Any]]:
    """The kind of student that a recipe trains."""
    kind: type[StudentKind[Any, Any]] = registry.get("students", recipe.student.name)
    return kind


def preflight(recipe: Recipe) -> None:
    """Ask the rewards and metrics with a class method ``preflight(config)``, before any work, whether they can judge.

    Raises the `UserError` of the first that cannot.
    """
    for name, choice in recipe.rewards.items():
        kind = registry.get("rewards", choice.name)
        if hasattr(kind, "preflight"):
            with guest("reward", name, kind):
                kind.preflight(choice.config)
    metrics = {name: registry.get("metrics", name) for name in recipe.evaluation.metrics or {}}
    asked = [name for name, kind in metrics.items() if hasattr(kind, "preflight")]
    for name in asked:
        metric = make("metrics", name, (recipe.evaluation.metrics or {})[name], f"evaluation.metrics.{name}")
        with guest("metric", name, metric):
            metrics[name].preflight(metric.config)


def build_student(recipe: Recipe) -> Student[Any]:
    """The student of a recipe: shipped or saved weights, or random ones from ``student.init``."""
    kind = student_kind(recipe)
    with guest("student", recipe.student.name, kind):
        student: Student[Any] = kind.build(recipe.student, recipe.seed)
        student.gradient_checkpointing(recipe.student.checkpointing)
    return computing_as(recipe, student)


def computing_as(recipe: Recipe, student: Student[Any]) -> Student[Any]:
    """A student that was just made, with what a recipe says of how it computes: kernels, and how many candidates a
    rollout generates at once."""
    kind = student_kind(recipe)
    with guest("student", recipe.student.name, kind):
        kind.settle(student, recipe.student)
    student.rollout_batch = recipe.trainer.rollout_batch
    return student


def build_objective(recipe: Recipe) -> Objective:
    """The objective with its settings, or the mixture of several."""
    if recipe.objectives:
        made = {label: _plugin("objective", part, OBJECTIVE_CALLS) for label, part in recipe.objectives.items()}
        return Mixture(made, recipe.objectives)
    chosen: Objective = _plugin("objective", recipe.objective, OBJECTIVE_CALLS)
    return chosen


def build_teacher(recipe: Recipe, frames: int, spec: Any) -> Any:
    """What the ``teacher`` section names, for videos of `frames` latent frames of the student `spec`, or None."""
    if recipe.teacher is None:
        return None
    name = recipe.teacher.name
    kind = registry.get("teachers", name)
    with guest("teacher", name, kind):
        return guarded("teacher", name, kind.from_recipe(recipe.teacher.config, frames, spec), TEACHER_CALLS)


def build_callbacks(recipe: Recipe) -> dict[str, Callback]:
    """The callbacks that a recipe names, by their labels."""
    return {label: _plugin("callback", one, CALLS) for label, one in recipe.callbacks.items()}


def build_trackers(recipe: Recipe) -> dict[str, TrackerPlugin]:
    """The trackers that a recipe names beside those of its section ``tracking``, by their labels."""
    return {label: _plugin("tracker", one, TRACKER_CALLS) for label, one in recipe.trackers.items()}


def _plugin(kind: str, choice: Choice, methods: tuple[str, ...]) -> Any:
    """A plugin made with its own settings."""
    made = registry.get(f"{kind}s", choice.name)
    with guest(kind, choice.name, made):
        return guarded(kind, choice.name, made(choice.config), methods)


def build_prompts(recipe: Recipe) -> PromptSource:
    """The prompt of sample n of a run. Raises `RecipeError` for a prompt that no reward can score."""
    source = open_source(recipe.training_prompts, recipe.seed, recipe.trainer.prompts_per_step)
    for objective in recipe.objectives.values() or [recipe.objective]:
        if problem := unscored(weighted(objective, recipe), source.questions()):
            raise RecipeError([problem])
    return source


def prompt_features(recipe: Recipe) -> PromptFeatures | None:
    """What turns the prompts of a recipe into features, without its student; None where the student reads them."""
    kind = student_kind(recipe)
    with guest("student", recipe.student.name, kind):
        features = kind.features(kind.spec(recipe.student))
    if features is not None and recipe.data.text_cache:
        features.folder = Path(recipe.data.text_cache)
    return features


def asked_prompts(recipe: Recipe, source: PromptSource, samples: int | None = None) -> list[Any]:
    """Every prompt of a run once: those of its evaluation, of its teacher, and `training_prompts`."""
    settings = recipe.evaluation
    held_out = open_source(recipe.judged_prompts, 0).first(settings.count)
    return list(dict.fromkeys([*held_out, *teacher_texts(recipe), *training_prompts(recipe, source, samples)]))


def training_prompts(recipe: Recipe, source: PromptSource, samples: int | None = None) -> list[Any]:
    """The prompts that a run trains on, each once; samples: of how many samples, by default those of all its steps."""
    trainer = recipe.trainer
    count = trainer.steps * trainer.prompts_per_step if samples is None else samples
    return list(dict.fromkeys(source[sample] for sample in range(count)))


def teacher_texts(recipe: Recipe) -> list[str]:
    """The prompts of its own that a teacher reads, see `PreparedTeacher`."""
    if recipe.teacher is None:
        return []
    kind = registry.get("teachers", recipe.teacher.name)
    with guest("teacher", recipe.teacher.name, kind):
        return list(kind.texts(recipe.teacher.config)) if hasattr(kind, "texts") else []


def build_rewards(recipe: Recipe, spec: Any, features: PromptFeatures | None) -> CompositeReward | None:
    """The weighted rewards of a recipe, or None when it names none."""
    if not recipe.rewards:
        return None
    rewards = {}
    for name, choice in recipe.rewards.items():
        kind = registry.get("rewards", choice.name)
        trainable = isinstance(kind, type) and issubclass(kind, TrainableReward)
        with guest("reward", name, kind):
            made = kind.from_recipe(recipe, spec, features) if trainable else _made(kind, choice.config)
        if trainable:
            guarded("reward", name, made.network, ("forward",))
        rewards[name] = guarded("reward", name, made, REWARD_CALLS)
    usual = recipe.trainer.reward_timeout
    seconds = {name: usual if one.timeout is None else one.timeout for name, one in recipe.rewards.items()}
    plugins, then = {name: one.name for name, one in recipe.rewards.items()}, recipe.trainer.on_reward_timeout
    fps = getattr(spec, "fps", None)
    return CompositeReward(rewards, recipe.reward_weights, plugins=plugins, seconds=seconds, on_timeout=then, fps=fps)


def _made(kind: Any, config: Any) -> Any:
    """A reward with its own settings; one that declares none is made without arguments."""
    return kind(config) if hasattr(kind, "Config") else kind()


def frozen_rewards(recipe: Recipe, student: Student[Any], run: Path) -> CompositeReward | None:
    """The rewards of a finished run, those that learn with their weights at its end; None when it names none.

    A reward that learns and whose weights the run does not hold is left out, with a warning.
    """
    rewards = build_rewards(recipe, student.spec, prompt_features(recipe))
    weights = recipe.reward_weights
    for reward in rewards.trainable if rewards else ():
        file = run / REWARDS / f"{reward.name}.safetensors"
        if not file.is_file():
            what = f"the run holds no weights of the reward {reward.name!r}: it does not judge"
            warnings.warn(f"{what} - {file}", UserWarning, stacklevel=2)
            del weights[reward.name]
            continue
        network = reward.network.to(distributed.device()).eval().requires_grad_(False)
        network.load_state_dict(load_file(file, str(distributed.device())), strict=False)
    return rewards.part(weights) if rewards and weights else None


def sampler_of(recipe: Recipe, student: Student[Any]) -> Generate:
    """How the recipe's evaluation samples a student."""
    settings = recipe.evaluation
    network = student.eval().to(distributed.device())
    return network.sampler(
        settings.frames, settings.sampler, features=prompt_features(recipe), temperature=settings.temperature
    )


@dataclass
class Parts:
    """What a training run is made of, before engines stand around the networks."""

    student: Any
    teacher: Any
    rewards: CompositeReward | None
    prompts: PromptSource
    features: Any
    codec: Any
    decoder: Any = None


def build_context(
    recipe: Recipe, objective: Objective, tracker: Tracker, *, samples: int | None = None
) -> TrainContext:
    """Everything that a training run holds; the student's trainable weights are already in their engine.

    Prompts are encoded first, then the teacher prepares itself: the text encoder, and a pipeline that makes clips, are
    gone before the student is built. samples: see `training_prompts`.
    """
    distributed.setup(single=recipe.engine.name == "deepspeed")
    preflight(recipe)
    device, prompts, features = distributed.device(), build_prompts(recipe), prompt_features(recipe)
    if features is not None:
        features.prepare(asked_prompts(recipe, prompts, samples))
    kind, frames = student_kind(recipe), recipe.data.frames
    spec = kind.spec(recipe.student)
    kind.check_frames(spec, frames, "data.frames")
    teacher = build_teacher(recipe, frames, spec)
    if isinstance(teacher, PreparedTeacher):
        teacher.prepare(training_prompts(recipe, prompts, samples), features)
    student = build_student(recipe).to(device)
    if isinstance(teacher, ChoosyTeacher):
        teacher.check_student(student)
    settings = recipe.evaluation
    held_out = open_source(recipe.judged_prompts, 0)
    prompts = kind.fitted(student, prompts, held_out, settings.count)
    if isinstance(teacher, ReadingTeacher):
        prompts = teacher.fitted(prompts)
    rewards = build_rewards(recipe, student.spec, features)
    objective.check_models(student, teacher)
    codec, decoder = kind.codec(student.spec), kind.decoder(recipe.student)
    parts = Parts(student, teacher, rewards, prompts, features, codec, decoder)
    return assemble(recipe, objective, parts, tracker, device)


def assemble(
    recipe: Recipe, objective: Objective, parts: Parts, tracker: Tracker, device: torch.device
) -> TrainContext:
    """The context of these parts: weight sets, an engine for every trained role, all of it on `device`."""
    engine = replace(recipe.engine, precision=distributed.resolve_precision(recipe.engine.precision))
    student, teacher, codec = parts.student, parts.teacher, parts.codec
    learning = parts.rewards.trainable if parts.rewards else []
    plans = [objective.blueprint(), *(reward.blueprint() for reward in learning)]
    trained = {name: role for plan in plans for name, role in plan.roles.items()}
    made = _networks("objective", objective, plans[0], student, teacher)
    for reward, plan in zip(learning, plans[1:], strict=True):
        made |= _networks("reward", reward, plan, student, teacher)
    weight_sets = [*plans[0].policies, *averaged(recipe)]
    policies = Policies(student, weight_sets, recipe.student.adapter, seed=recipe.seed)  # changes the student
    updates = planned_updates(objective, learning, recipe.trainer.steps)
    for name, network in made.items():
        if (adapter := trained[name].adapter) is not None:
            Policies(network, (), adapter, seed=recipe.seed)
    engines: dict[str, Engine] = {}
    for name, network in {STUDENT: student, **made}.items():
        settings = replace(recipe.trainer, **trained[name].optimizer)
        sets = policies if name == STUDENT else None
        engines[name] = build_engine(engine, settings, network.to(device), updates[name], sets)
    for one in [codec, *([parts.decoder] if parts.decoder else [])]:
        one.to(device).eval().requires_grad_(False)
        if engine.precision == "fp64":
            one.double()  # else it computes in its own dtype
    roles = Roles(engines, _frozen_networks(teacher, engine.precision, device), precision=engine.precision)
    if network_of(teacher) is not None:
        plain = roles.module("teacher")  # computes in the engine's precision from now on
        teacher.model = teacher.placement.view(plain) if isinstance(teacher, PlacedTeacher) else plain
    ctx = TrainContext(
        seed=recipe.seed,
        frames=recipe.data.frames,
        micro_batch=recipe.trainer.micro_batch,
        device=device,
        roles=roles,
        policies=policies,
        rewards=parts.rewards,
        teacher=teacher,
        prompts=parts.prompts,
        features=parts.features,
        codec=codec,
        decoder=parts.decoder,
        spread=processes_of_a_group(recipe, distributed.world_size()),
        tracker=tracker,
        signal=SignalFloor(recipe.trainer.signal_floor),
        clips_every=recipe.tracking.clips_every,
        score_ahead=recipe.trainer.score_ahead,
    )
    for reward in learning:
        reward.attach(ctx)
    return ctx


def _networks(kind: str, owner: Any, plan: Blueprint, student: Any, teacher: Any) -> dict[str, torch.nn.Module]:
    """The networks of the further roles of a plugin, by role."""
    with guest(kind, owner.name, owner):
        return {name: role.network(student, teacher) for name, role in plan.roles.items() if role.network is not None}


def planned_updates(objective: Objective, learning: Sequence[TrainableReward], steps: int) -> Counter[str]:
    """Optimiser steps of every role in a run of so many training steps: how long its learning rate falls."""
    updates: Counter[str] = Counter()
    for step in range(steps):
        for phase in objective.phases(step):
            updates[phase.role] += phase.updates
    for reward in learning:
        for phase in reward.blueprint().phases():
            updates[phase.role] += steps * phase.updates
    return updates


def _frozen_networks(teacher: Any, precision: str, device: torch.device) -> dict[str, torch.nn.Module]:
    """The teacher's network, if it is one, with weights in the engine's precision."""
    if (network := network_of(teacher)) is None:
        return {}
    if isinstance(teacher, PlacedTeacher):
        return {"teacher": teacher.placement.settle(teacher.model, precision, device)}
    set_precision(network, precision)
    return {"teacher": network.to(device)}


def averaged(recipe: Recipe) -> tuple[str, ...]:
    """The weight set of the moving average, if the recipe keeps one."""
    return ("ema",) if recipe.trainer.ema_decay else ()
