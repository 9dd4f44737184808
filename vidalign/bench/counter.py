"""Counts what a training run really costs, where it arises: at the networks, the rewards and the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from vidalign.cost import Cost
from vidalign.students.language import LanguageStudent
from vidalign.students.video import VideoStudent

if TYPE_CHECKING:
    from vidalign.context import TrainContext


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
            past, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
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
