"""Several objectives in one run: ``L = sum_i w_i L_i`` on one student with one optimiser.

Every objective collects its own experience from the prompts of the step, which its own rewards judge. The gradients of
all add up before the optimiser steps once. From `start` up to `stop` (steps of training) an objective takes part. What
they share: the prompts, and the counter RNG, so that equal objectives see equal rollouts. The weight sets `old` and
`reference` are each objective's own, since one would move them under the other. Only those that stay the initial
student, or are the student after every step, are held once (`Blueprint.policies`). An `old` begins as the student is
when its objective starts, or stays the initial student.

Knobs: `weight`, `start`, `stop`, `rewards` of each entry of the recipe's `objectives` section (no objective may have
settings of these names). The label of an entry names its metrics: `objective/LABEL_kl/mean`. A weight scales the loss;
AdamW follows the direction of the sum alone, so weights matter against each other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from vidalign.cost import Cost
from vidalign.errors import UserError
from vidalign.objectives.base import STUDENT, Blueprint, Experience, LossOut, MicroBatch, Objective, Phase, TrainedRole

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.cost import StepSizes
    from vidalign.engine.blueprint import PolicyRule
    from vidalign.recipe.schema import Part


@dataclass
class MixedExperience(Experience):
    """What every objective that takes part collected, by label; it has no tensors of its own."""

    parts: dict[str, Experience] = field(default_factory=dict)

    def requesting(self) -> list[Experience]:
        return [part for part in self.parts.values() if part.request is not None]


@dataclass
class MixedBatch(MicroBatch):
    """A micro-batch of one objective; `weight` holds the objective's weight too."""

    label: str = ""


class Mixture(Objective):
    """`objectives` by label, each with its entry of the recipe; the same labels in both."""

    name = "mixture"

    def __init__(self, objectives: Mapping[str, Objective], parts: Mapping[str, Part]) -> None:
        super().__init__(None)
        self.objectives, self.parts = dict(objectives), dict(parts)
        self.sets = _weight_sets(self.objectives)
        """Which weight set of the student stands in for each that an objective uses, by label."""
        self.active: list[str] = []
        """Labels of the objectives that take part in the present step."""

    # --- roles ---

    def blueprint(self) -> Blueprint:
        """Everything that its objectives need; a role but the student's belongs to one of them."""
        policies: dict[str, PolicyRule] = {}
        roles: dict[str, TrainedRole] = {STUDENT: TrainedRole()}
        for label, objective in self.objectives.items():
            own = objective.blueprint()
            policies |= {self.sets[label][name]: rule for name, rule in own.policies.items()}
            for role, trained in own.roles.items():
                if role != STUDENT and role in roles:
                    raise UserError(
                        f"two objectives train a role called {role!r}",
                        where=f"objectives.{label}",
                        why="a role has one network and one optimiser",
                        fix="keep one of them",
                    )
                roles[role] = trained
        return Blueprint(policies, roles)

    def phases(self, step: int) -> tuple[Phase, ...]:
        """The phases of all that take part. They share the student's, which lies between what comes before and after it
        in any of them. It has as many updates as the one with the most."""
        before: list[Phase] = []
        after: list[Phase] = []
        updates: list[int] = []
        for label in self._taking_part(step):
            phases = self.objectives[label].phases(step)
            at = [phase.role for phase in phases].index(STUDENT)
            before += phases[:at]
            after += phases[at + 1 :]
            updates.append(phases[at].updates)
        return (*before, Phase(STUDENT, max(updates)), *after)

    def check_models(self, student: Any, teacher: Any) -> None:
        for objective in self.objectives.values():
            objective.check_models(student, teacher)

    # --- one step ---

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        self.active = self._taking_part(ctx.step)
        assert self.active, f"no objective takes part in step {ctx.step}: the recipe is checked for that"
        experiences: dict[str, Experience] = {}
        for label in self.active:
            part, objective = self.parts[label], self.objectives[label]
            with ctx.policies.aliased(self.sets[label]):
                if ctx.step == part.start > 0 and objective.blueprint().policies.get("old", "fixed") != "fixed":
                    ctx.policies.copy("current", "old")  # it has not been moved for this objective before
                experiences[label] = _judged_by(objective.collect(_own_view(ctx, label, part), batch), part)
        nothing = torch.empty(0)
        return MixedExperience({}, nothing, nothing, batch.prompts, parts=experiences)

    def digest(self, ctx: TrainContext, experience: Experience) -> Experience:
        assert isinstance(experience, MixedExperience), "a mixture digests what it collected"
        for label in self.active:
            with ctx.policies.aliased(self.sets[label]):
                own = _own_view(ctx, label, self.parts[label])
                experience.parts[label] = self.objectives[label].digest(own, experience.parts[label])
        experience.metrics = self._merged(experience.parts)
        return experience

    def micro_batches(self, ctx: TrainContext, experience: Experience, phase: Phase) -> Iterable[MicroBatch]:
        assert isinstance(experience, MixedExperience), "a mixture cuts what it collected"
        for label in self.active:
            own = self._phase(ctx, label, phase.role)
            if own is None or ctx.update >= own.updates:
                continue
            factor = self.parts[label].weight if phase.role == STUDENT else 1.0
            for piece in self.objectives[label].micro_batches(ctx, experience.parts[label], own):
                yield MixedBatch(piece.data, factor * piece.weight, piece.index, label)

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        assert isinstance(micro_batch, MixedBatch), "a mixture cuts what it collected"
        label = micro_batch.label
        own = self._phase(ctx, label, phase.role)
        assert own is not None, "only objectives that train the role have micro-batches in its phase"
        with ctx.policies.aliased(self.sets[label]):
            out = self.objectives[label].loss(ctx, micro_batch, own)
        metrics = {"objective/loss/mean": out.loss.detach(), **out.metrics}
        named = {self._name(label, name): value for name, value in metrics.items()}
        sums = {f"{label}/{name}": value for name, value in out.sums.items()}
        return LossOut(out.loss, named, sums, {self._name(label, name): n for name, n in out.counts.items()})

    def cost(self, sizes: StepSizes) -> Cost:
        """What those that take part in the step cost together, each with its own rewards."""
        total = Cost()
        for label in self._taking_part(sizes.step):
            own = self.parts[label].rewards
            total += self.objectives[label].cost(sizes if own is None else replace(sizes, reward_weights=own))
        return total

    def after_step(self, ctx: TrainContext) -> None:
        all_sums = ctx.sums
        for label in self.active:
            head = f"{label}/"
            ctx.sums = {name.removeprefix(head): v for name, v in all_sums.items() if name.startswith(head)}
            with ctx.policies.aliased(self.sets[label]):
                self.objectives[label].after_step(ctx)
        ctx.sums = all_sums

    def state_dict(self) -> dict[str, Any]:
        return {label: objective.state_dict() for label, objective in self.objectives.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for label, objective in self.objectives.items():
            objective.load_state_dict(state[label])

    # --- helpers ---

    def _taking_part(self, step: int) -> list[str]:
        """Labels of the objectives of a step."""
        return [label for label, part in self.parts.items() if part.start <= step < _stop(part)]

    def _phase(self, ctx: TrainContext, label: str, role: str) -> Phase | None:
        """The turn of `role` in one objective."""
        return next((phase for phase in self.objectives[label].phases(ctx.step) if phase.role == role), None)

    def _name(self, label: str, metric: str) -> str:
        """``objective/kl/mean`` to ``objective/LABEL_kl/mean``; the other groups, which monitors read, stay."""
        return metric.replace("objective/", f"objective/{label}_", 1) if metric.startswith("objective/") else metric

    def _merged(self, experiences: dict[str, Experience]) -> dict[str, float]:
        """Metrics of all collections; of those with one name the mean, or the largest of ``.../max``."""
        values: dict[str, list[float]] = defaultdict(list)
        for label, experience in experiences.items():
            for name, value in experience.metrics.items():
                values[self._name(label, name)].append(value)
        return {name: max(v) if name.endswith("/max") else sum(v) / len(v) for name, v in values.items()}


def _weight_sets(objectives: Mapping[str, Objective]) -> dict[str, dict[str, str]]:
    """By label, the weight set behind each that an objective uses: ``old``, and ``old_2`` and so on for those that move
    otherwise."""
    owners: dict[str, list[str]] = defaultdict(list)
    sets: dict[str, dict[str, str]] = {}
    for label, objective in objectives.items():
        sets[label] = {}
        for name, rule in objective.blueprint().policies.items():
            owner, known = (f"own {label}" if rule == "own" else rule), owners[name]
            if owner not in known:
                known.append(owner)
            number = known.index(owner) + 1
            sets[label][name] = name if number == 1 else f"{name}_{number}"
    return sets


def _own_view(ctx: TrainContext, label: str, part: Part) -> TrainContext:
    """The context as one objective sees it: with its own rewards and signal floor."""
    rewards = ctx.rewards
    if part.rewards is not None and rewards is not None:
        rewards = rewards.part(part.rewards)
    return replace(ctx, rewards=rewards, signal=ctx.signal.of(label))


def _judged_by(data: Experience, part: Part) -> Experience:
    """Ask for the rewards of one objective alone."""
    if data.request is not None and part.rewards is not None:
        data.request = replace(data.request, rewards=tuple(part.rewards))
    return data


def _stop(part: Part) -> float:
    return math.inf if part.stop is None else part.stop
