"""The cost model: forwards, reward calls and teacher calls of a training run, from its recipe alone.

`predict` adds up what the objective says of every step (`vidalign.cost`); `Counter` counts what a run
really does. Equal budgets are turned into steps by `steps_within`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import nn

from vidalign import registry
from vidalign.build import LANGUAGE, build_objective
from vidalign.cost import Cost, StepSizes
from vidalign.errors import UserError
from vidalign.guest import guest
from vidalign.rewards.base import TrainableReward
from vidalign.students.language import LanguageStudent
from vidalign.students.video import Sampler, VideoStudent, VideoStudentSpec, checkpoint
from vidalign.students.video.checkpoint import resolve

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.recipe import Recipe

LONGEST = 10_000_000
"""Steps beyond which a budget is taken for a mistake."""


def read_spec(path: str) -> VideoStudentSpec:
    """The specification of saved or shipped weights, from the header of the file; tensors are not read."""
    with safe_open(resolve(path), "pt") as file:
        metadata = dict(file.metadata() or {})
    spec = checkpoint.read_spec(metadata, path, "transformer", checkpoint.SIZES)
    with checkpoint.reading_spec(path):
        return VideoStudentSpec.from_dict(spec)


def step_costs(recipe: Recipe) -> Iterator[Cost]:
    """Cost of step 0, 1, ... without end; raises `UserError` when the objective does not declare it."""
    objective = build_objective(recipe)
    chunks, sampler = _video_sizes(recipe)
    kinds = {name: registry.get("rewards", name) for name in recipe.rewards}
    learning = {n: kind for n, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, TrainableReward)}
    for step in count():
        sizes = StepSizes(recipe.seed, step, recipe.trainer.prompts_per_step, chunks, len(recipe.rewards), sampler)
        cost = objective.cost(sizes)
        for name, kind in learning.items():
            with guest("reward", name, kind):
                cost += kind.cost(recipe, sizes)
        yield cost


def _video_sizes(recipe: Recipe) -> tuple[int, Sampler]:
    """Chunks of a video and the student's sampler; none and a single step for a language student."""
    config = recipe.student
    if config.name == LANGUAGE:
        return 0, Sampler()
    spec = VideoStudentSpec.from_dict(dict(config.init)) if config.init else read_spec(config.path)
    return recipe.data.frames // spec.cache.chunk_frames, spec.sampler


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
        for engine in ctx.roles.engines.values():
            for network in denoisers(engine.network):
                network.register_forward_pre_hook(self._forward(ctx.chunk_frames), with_kwargs=True)
            self._hook_language_models(engine.network, "forwards")
        if ctx.rewards is not None:
            ctx.rewards.on_call(lambda clips: self._add("reward_calls", clips))
        methods = [name for name in getattr(ctx.teacher, "offers", ()) if hasattr(ctx.teacher, name)]
        for method in methods:
            self._wrap(ctx.teacher, method, "teacher_calls")
        if not methods and hasattr(ctx.teacher, "model"):
            self._hook_teacher(ctx.teacher.model)

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

    def _forward(self, chunk_frames: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            clip_frames = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._add("forwards", len(clip_frames) / chunk_frames)  # frames fold into the batch

        return hook

    def _hook_teacher(self, network: Any) -> None:
        """Count the clips or responses of every pass through a network that objectives call themselves."""
        for module in network.modules():
            if isinstance(module, VideoStudent):
                module.register_forward_pre_hook(lambda module, args: self._add("teacher_calls", len(args[0])))
        self._hook_language_models(network, "teacher_calls")

    def _hook_language_models(self, network: Any, counted: str) -> None:
        """Count rows as they begin; the later calls of a generation, which find a filled cache, go on with them.
        Only a generation of the student brings a cache, an empty one at first: then its rows are responses."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids")
            # called `past_key_values` up to transformers 5.23, `cache` since
            past = next((value for value in kwargs.values() if hasattr(value, "get_seq_length")), None)
            rows = len(ids if ids is not None else kwargs["inputs_embeds"])  # models of pictures embed them themselves
            if past is None or past.get_seq_length() == 0:
                self._add(counted, rows)
                if past is not None and counted == "forwards":
                    self._add("responses", rows)

        for module in network.modules():
            if isinstance(module, LanguageStudent):
                module.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)

    def _add(self, counted: str, amount: float) -> None:
        if self._on:
            setattr(self, counted, getattr(self, counted) + amount)

    def _wrap(self, owner: Any, name: str, counted: str) -> None:
        method = getattr(owner, name)

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            self._add(counted, len(first))
            return method(first, *args, **kwargs)

        setattr(owner, name, call)


def denoisers(network: nn.Module) -> list[nn.Module]:
    """The diffusion transformers inside a network, whatever is wrapped around them."""
    from diffusers import WanTransformer3DModel

    return [module for module in network.modules() if isinstance(module, WanTransformer3DModel)]
