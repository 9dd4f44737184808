"""The cost model: forwards, reward calls and teacher calls of a training run, from its recipe alone.

`predict` adds up what the objective says of every step (`vidalign.objectives.cost`); `Counter` counts what a run
really does. Equal budgets are turned into steps by `steps_within`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import nn

from vidalign import registry
from vidalign.build import build_objective
from vidalign.errors import UserError
from vidalign.objectives.cost import Cost, StepSizes
from vidalign.rewards.base import TrainableReward
from vidalign.students.video import VideoStudentSpec
from vidalign.students.video.checkpoint import resolve

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.recipe import Recipe

LONGEST = 10_000_000
"""Steps beyond which a budget is taken for a mistake."""


def read_spec(path: str) -> VideoStudentSpec:
    """The specification of saved or shipped weights, from the header of the file; tensors are not read."""
    with safe_open(resolve(path), "pt") as file:
        return VideoStudentSpec.from_dict(json.loads((file.metadata() or {})["spec"]))


def step_costs(recipe: Recipe) -> Iterator[Cost]:
    """Cost of step 0, 1, ... without end; raises `UserError` when the objective does not declare it."""
    objective = build_objective(recipe)
    config = recipe.student
    spec = VideoStudentSpec.from_dict(dict(config.init)) if config.init else read_spec(config.path)
    chunks = recipe.data.frames // spec.cache.chunk_frames
    kinds = [registry.get("rewards", name) for name in recipe.rewards]
    learning = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, TrainableReward)]
    for step in count():
        sizes = StepSizes(recipe.seed, step, recipe.trainer.prompts_per_step, chunks, len(recipe.rewards), spec.sampler)
        yield sum((kind.cost(recipe, sizes) for kind in learning), objective.cost(sizes))


def predict(recipe: Recipe) -> Cost:
    """Cost of all ``trainer.steps`` of a recipe, evaluations left out."""
    total = Cost()
    for _, cost in zip(range(recipe.trainer.steps), step_costs(recipe), strict=False):
        total = total + cost
    return total


def steps_within(recipe: Recipe, currency: str, amount: float) -> int:
    """The most steps that cost no more than `amount` forwards, or (``calls``) reward and teacher calls.

    Raises `UserError` when not even one step fits, or when a step costs nothing in that currency.
    """
    spent = 0.0
    for steps, cost in enumerate(step_costs(recipe)):
        price = cost.forwards if currency == "forwards" else cost.reward_calls + cost.teacher_calls
        if price <= 0 or steps >= LONGEST:
            raise UserError(
                f"the objective {recipe.objective.name or 'mixture'!r} spends no {currency}", where="budget.currency",
                fix="use a budget in forwards or seconds",
            )  # fmt: skip
        if spent + price > amount:
            if steps == 0:
                raise UserError(
                    f"a budget of {amount:g} {currency} does not pay for one step", where="budget.amount",
                    why=f"the first step of {recipe.name} costs {price:g}",
                    fix="raise it, or make the steps smaller (trainer.prompts_per_step)",
                )  # fmt: skip
            return steps
        spent += price
    raise AssertionError("the costs of steps never end")


class Counter:
    """Counts the cost of a training run where it arises: at the networks, the rewards and the teacher."""

    def __init__(self, ctx: TrainContext) -> None:
        self.forwards = self.reward_calls = self.teacher_calls = 0.0
        self._on = True
        frames = ctx.chunk_frames
        for engine in ctx.roles.engines.values():
            for network in denoisers(engine.network):
                network.register_forward_pre_hook(self._forward(frames), with_kwargs=True)
        if ctx.rewards is not None:
            for reward in ctx.rewards.rewards.values():  # a mixture puts them together anew for each objective
                self._wrap(reward, "score", "reward_calls")
        for method in getattr(ctx.teacher, "offers", ()):
            self._wrap(ctx.teacher, method, "teacher_calls")

    def total(self) -> Cost:
        """Everything counted so far."""
        return Cost(self.forwards, self.reward_calls, self.teacher_calls)

    def start_from(self, cost: Cost) -> None:
        """Go on from what an interrupted run had spent."""
        self.forwards, self.reward_calls, self.teacher_calls = cost.forwards, cost.reward_calls, cost.teacher_calls

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens meanwhile: evaluation is no part of a budget."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    def _forward(self, chunk_frames: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._on:
                clip_frames = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                self.forwards += len(clip_frames) / chunk_frames  # frames fold into the batch

        return hook

    def _wrap(self, owner: Any, name: str, counted: str) -> None:
        method = getattr(owner, name)

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            if self._on:
                setattr(self, counted, getattr(self, counted) + len(first))
            return method(first, *args, **kwargs)

        setattr(owner, name, call)


def denoisers(network: nn.Module) -> list[nn.Module]:
    """The diffusion transformers inside a network, whatever is wrapped around them."""
    from diffusers import WanTransformer3DModel

    return [module for module in network.modules() if isinstance(module, WanTransformer3DModel)]
