"""What an objective, or a reward that learns, asks of the engines: weight sets of the student, and trained networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from vidalign.engine.config import AdapterConfig

STUDENT = "student"
PolicyRule = Literal["fixed", "current", "own"]
"""How a weight set moves: ``fixed``, the initial student for good; ``current``, the student after every step; ``own``,
any other way, by `Objective.after_step`."""


@dataclass(frozen=True)
class Phase:
    """One role's turn in a training step."""

    role: str = STUDENT
    updates: int = 1
    """Optimiser steps on the same experience."""


@dataclass(frozen=True)
class TrainedRole:
    """A network that is trained, with an engine and an optimiser of its own."""

    updates: int = 1
    """Optimiser steps in every training step."""
    network: Callable[[Any, Any], nn.Module] | None = None
    """Makes it from student and teacher, before the student gets its adapters; None for the student itself."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `OptimizerConfig` in which it differs from the recipe's ``trainer`` section."""
    adapter: AdapterConfig | None = None
    """Low-rank adapters on its network, which then stays frozen; those of the student are in its own section."""


@dataclass(frozen=True)
class Blueprint:
    """Everything that is built for an objective or a reward, said at once and before anything is built."""

    policies: Mapping[str, PolicyRule] = field(default_factory=dict)
    """Further weight sets of the student by name, ``old`` or ``reference``; parts of a mixture share those that stay
    or follow the student."""
    roles: Mapping[str, TrainedRole] = field(default_factory=lambda: {STUDENT: TrainedRole()})
    """What is trained, in the order of its turns in a step."""

    def phases(self) -> tuple[Phase, ...]:
        """The turns of a step in which everything is trained."""
        return tuple(Phase(name, role.updates) for name, role in self.roles.items())
