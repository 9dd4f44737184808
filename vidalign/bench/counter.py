"""Counts what a training run really costs, where it arises: at the networks, the rewards and the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from vidalign.cost import Cost
from vidalign.students.base import Pass, Student
from vidalign.teachers.base import network_of

if TYPE_CHECKING:
    from vidalign.context import TrainContext


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
        """Leave out what happens within this context: evaluation is no part of a budget."""
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
