"""The cost model: forwards, reward calls and teacher calls of a training run, from its recipe alone.

`predict` adds up what the objective says of every step (`vidalign.cost`); `Counter` counts what a run
really does. Equal budgets are turned into steps by `steps_within`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import nn

from vidalign import registry
from vidalign.build import build_objective, student_kind
from vidalign.cost import Cost, StepSizes
from vidalign.errors import UserError
from vidalign.guest import guest
from vidalign.rewards.base import TrainableReward
from vidalign.students.base import Pass, Student
from vidalign.teachers.base import network_of

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.recipe import Recipe

LONGEST = 10_000_000
"""Steps beyond which a budget is taken for a mistake."""


def step_costs(recipe: Recipe) -> Iterator[Cost]:
    """Cost of step 0, 1, ... without end; raises `UserError` when the objective does not declare it."""
    objective = build_objective(recipe)
    chunks, sampler = student_kind(recipe).sizes(recipe.student, recipe.data.frames)
    kinds = {name: registry.get("rewards", name) for name in recipe.rewards}
    learning = {n: kind for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, TrainableReward)}
    for step in count():
        sizes = StepSizes(recipe.seed, step, recipe.trainer.prompts_per_step, chunks, len(recipe.rewards), sampler)
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


class Counter:
    """Counts the cost of a training run where it arises: at the networks, the rewards and the teacher.

    A teacher is counted at the methods that it offers; one that offers only its network, at the passes through it.
    """

    def __init__(self, ctx: TrainContext) -> None:
        self.forwards = self.reward_calls = self.teacher_calls = self.responses = 0.0
        self._on = True
        self._chunk = ctx.student.chunk_frames
        for engine in ctx.roles.engines.values():
            for network in _students(engine.network):
                network.on_pass(self._trained)
        if ctx.rewards is not None:
            ctx.rewards.on_call(lambda clips: self._add("reward_calls", clips))
        methods = [name for name in getattr(ctx.teacher, "offers", ()) if hasattr(ctx.teacher, name)]
        for method in methods:
            self._wrap(ctx.teacher, method, "teacher_calls")
        if not methods and (own := network_of(ctx.teacher)) is not None:
            for network in _students(own):
                network.on_pass(lambda one: self._add("teacher_calls", one.rows))

    def total(self) -> Cost:
        """Everything counted so far."""
        return Cost(self.forwards, self.reward_calls, self.teacher_calls, self.responses)

    def start_from(self, cost: Cost) -> None:
        """Go on from what an interrupted run had spent."""
        self.forwards, self.responses = cost.forwards, cost.responses
        self.reward_calls, self.teacher_calls = cost.reward_calls, cost.teacher_calls

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens meanwhile: evaluation is no part of a budget."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    def _trained(self, one: Pass) -> None:
        """A pass through a network that is trained."""
        self._add("forwards", one.amount / self._chunk)
        self._add("responses", one.responses)

    def _add(self, counted: str, amount: float) -> None:
        if self._on:
            setattr(self, counted, getattr(self, counted) + amount)

    def _wrap(self, owner: Any, name: str, counted: str) -> None:
        method = getattr(owner, name)

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            self._add(counted, len(first))
            return method(first, *args, **kwargs)

        setattr(owner, name, call)


def _students(network: nn.Module) -> list[Student[Any]]:
    """The students inside a network, whatever is wrapped around them."""
    return [module for module in network.modules() if isinstance(module, Student)]
