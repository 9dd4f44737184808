"""What a step of a recipe holds on one accelerator, phase by phase, before anything is loaded; and what it does hold.

The recipe's own code runs on a device without memory (`vidalign.engine.traced`) with networks of their real size, see
`Step`; `measure_step` runs the same on the device that is there. A random fork or pivot is at its end: where one is
drawn, the step is traced with the first one too. Where objectives join on the way, so are the steps in which they do.
The largest peak counts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vidalign.engine import distributed
from vidalign.engine.meter import metered
from vidalign.engine.traced import DEVICE, traced
from vidalign.errors import DoesNotFit, UserError, first_line
from vidalign.recipe.sharing import processes_of_a_group
from vidalign.workflows.step import Sizes, Step, first_steps, prompts_of

if TYPE_CHECKING:
    from vidalign.engine.config import EngineConfig
    from vidalign.recipe import Recipe


@dataclass
class Plan(Sizes):
    """Bytes of one step on one accelerator."""

    step: int = 0
    """Number of the step."""
    last: bool = True
    """Whether random forks are at the last place, else at the first."""

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
        own = dict(self.contexts)
        if self.at in self.gradients:
            own["gradients"] = self.gradients[self.at]
        rest = self.peak - sum(self.held.values()) - sum(own.values())
        return own | {f"tensors of `{self.at}`": rest}


def plan_step(recipe: Recipe, gpus: int = 1) -> Plan:
    """The plan of a recipe on so many accelerators. Raises `UserError` for what cannot be planned."""
    plans: list[Plan] = []
    for step in first_steps(recipe):
        plan, drawn = trace_step(recipe, gpus, step=step)
        plans += [plan, trace_step(recipe, gpus, last=False, step=step)[0]] if drawn else [plan]
    return max(plans, key=lambda plan: plan.peak)


def trace_step(recipe: Recipe, gpus: int = 1, *, last: bool = True, step: int = 0) -> tuple[Plan, bool]:
    """The plan with random forks at the last place (or the first one), and whether there is such a fork."""
    prompts, spread = max(1, recipe.trainer.prompts_per_step // gpus), processes_of_a_group(recipe, gpus)
    if spread > 1:  # each process has a part of every group
        recipe, whole = copy.copy(recipe), recipe.objective.config
        part = replace(whole, group_size=whole.group_size // spread)
        recipe.objective = replace(recipe.objective, config=part)
    given = prompts_of(recipe, prompts, step)
    with _refusing(recipe), traced(last=last) as live:
        sizes = Step(recipe, live, DEVICE, given).run()
    plan = divided(Plan(**vars(sizes), step=step, last=last), recipe.engine, gpus)
    return (without_teacher(plan) if lies_elsewhere(recipe) else plan), live.drawn


def lies_elsewhere(recipe: Recipe) -> bool:
    """Whether the teacher is on a device of its own, or behind a server."""
    config = recipe.teacher.config if recipe.teacher is not None else None
    return getattr(config, "device", "") not in ("", "cuda") or hasattr(config, "url")


def without_teacher(plan: Plan) -> Plan:
    """The plan of the student's device alone; what the teacher computes still counts, as if it did so here."""
    held = dict(plan.held)
    size = held.pop("network of `teacher`", 0)
    return replace(plan, held=held, phases={name: bytes_ - size for name, bytes_ in plan.phases.items()})


def measure_step(recipe: Recipe, plan: Plan) -> tuple[Plan, torch.device]:
    """The step that was planned for one accelerator, run on this process' device, and that device.

    Weights are those of the recipe, and nothing is saved. On a CPU the tensors of the host count too. Raises
    `UserError` as training would, and `DoesNotFit` where the device has too little memory.
    """
    device, prompts = distributed.device(), recipe.trainer.prompts_per_step
    if device.type == "cpu" and getattr(recipe.student.config, "compile", False):
        why, fix = "tensors inside a graph cannot be counted", "add student.compile=false"
        raise UserError("compiled blocks are not measured on a CPU", where="student.compile", why=why, fix=fix)
    given = prompts_of(recipe, prompts, plan.step)
    try:
        with metered(device, last=plan.last) as meter:
            sizes = Step(recipe, meter, device, given).run()
    except torch.OutOfMemoryError as error:
        raise DoesNotFit("a step does not fit on this device", where=str(device), why=first_line(error)) from error
    return Plan(**vars(sizes), step=plan.step, last=plan.last), device


@contextmanager
def _refusing(recipe: Recipe) -> Iterator[None]:
    """Code that needs values cannot be traced."""
    try:
        yield
    except NotImplementedError as error:
        what = f"the step of {recipe.name} cannot be traced"
        raise UserError(what, why=f"it needs values: {first_line(error)[:160]}") from error


def divided(plan: Plan, engine: EngineConfig, gpus: int) -> Plan:
    """The plan of one of several processes: DeepSpeed divides optimiser state (ZeRO 1), gradients (2) and weights (3);
    a plain engine averages gradients in a flat copy. A rollout has whole weights, see `Engine.gathered`."""
    held, phases, gradients, away = dict(plan.held), dict(plan.phases), dict(plan.gradients), 1 - 1 / gpus
    if engine.name != "deepspeed":
        copies = {name: 2 * size for name, size in gradients.items() if name.startswith("update") and gpus > 1}
        return replace(plan, phases={name: size + copies.get(name, 0) for name, size in phases.items()})
    if engine.zero_stage >= 1 or engine.offload != "none":
        for name in [name for name in held if name.startswith("optimiser")]:
            saved = int(held[name] * (1 if engine.offload != "none" else away))
            held[name] -= saved
            phases = {phase: size - saved for phase, size in phases.items()}
    if engine.zero_stage >= 2:
        less = {name: int(size * away) for name, size in gradients.items()}
        gradients = {name: size - less[name] for name, size in gradients.items()}
        phases = {name: size - less.get(name, 0) for name, size in phases.items()}
    if engine.zero_stage == 3:
        weights = int(away * sum(size for name, size in held.items() if "weights" in name))
        phases = {name: size - (weights if name in gradients else 0) for name, size in phases.items()}
    return replace(plan, held=held, phases=phases, gradients=gradients)
