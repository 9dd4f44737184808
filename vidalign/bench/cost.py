"""The cost model: forwards, reward calls and teacher calls of a training run, from its recipe alone.

`predict` adds up what the objective says of every step (`vidalign.cost`); `vidalign.bench.counter` counts what a run
really does. Equal budgets are turned into steps by `steps_within`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from vidalign import registry
from vidalign.bench.dry import dry_step
from vidalign.build import build_objective, student_kind
from vidalign.cost import Cost, StepSizes
from vidalign.errors import UserError
from vidalign.guest import guest
from vidalign.rewards.base import TrainableReward

if TYPE_CHECKING:
    from vidalign.objectives.base import Objective
    from vidalign.recipe import Recipe

LONGEST = 10_000_000
"""Steps beyond which a budget is taken for a mistake."""


def step_costs(recipe: Recipe) -> Iterator[Cost]:
    """Cost of step 0, 1, ... without end; raises `UserError` when the objective does not declare it."""
    objective = build_objective(recipe)
    chunks, sampler, _ = student_kind(recipe).sizes(recipe.student, recipe.data.frames)
    kinds = {name: registry.get("rewards", choice.name) for name, choice in recipe.rewards.items()}
    learning = {n: kind for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, TrainableReward)}
    counted: dict[int, Cost] = {}

    def once(sizes: StepSizes, other: Objective) -> Cost:
        """One dry step of an objective: all of its steps cost the same."""
        if id(other) not in counted:
            counted[id(other)] = dry_step(recipe, other, sizes)
        return counted[id(other)]

    prompts, weights = recipe.trainer.prompts_per_step, recipe.reward_weights
    for step in count():
        sizes = StepSizes(recipe.seed, step, prompts, chunks, weights, sampler, once)
        cost = objective.cost(sizes)
        for name, kind in learning.items():
            with guest("reward", name, kind):
                cost += kind.cost(recipe, sizes)
        yield cost


def predict(recipe: Recipe) -> Cost:
    """Cost of all ``trainer.steps`` of a recipe, evaluations left out."""
    total = Cost()
    for _, cost in zip(range(recipe.trainer.steps), step_costs(recipe), strict=False):
        total = total + cost
    return total


def steps_within(recipe: Recipe, currency: str, amount: float) -> int:
    """The most steps that cost no more than `amount` forwards, responses, or (``calls``) reward and teacher calls.

    Raises `UserError` when not even one step fits, or when a step costs nothing in that currency.
    """
    spent = 0.0
    for steps, cost in enumerate(step_costs(recipe)):
        price = cost.reward_calls + cost.teacher_calls if currency == "calls" else getattr(cost, currency)
        if price <= 0 or steps >= LONGEST:
            raise UserError(
                f"the objective {recipe.objective.name or 'mixture'!r} spends no {currency}",
                where="budget.currency",
                fix="use a budget in forwards or seconds",
            )
        if spent + price > amount:
            if steps == 0:
                raise UserError(
                    f"a budget of {amount:g} {currency} does not pay for one step",
                    where="budget.amount",
                    why=f"the first step of {recipe.name} costs {price:g}",
                    fix="raise it, or make the steps smaller (trainer.prompts_per_step)",
                )
            return steps
        spent += price
    raise AssertionError("the costs of steps never end")
