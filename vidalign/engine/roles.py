"""The engine rule: a role's network goes through its engine in the role's own phase, and frozen otherwise.

Measured on DeepSpeed 0.19: the student's loss through another role's engine raises under ZeRO 0-2 and is
silently wrong under ZeRO-3; through the other role's module without freezing it, it is silently wrong under
ZeRO 0-1. So there is one door to every network, `module`, and one place that freezes, `phase`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from vidalign.engine.base import Dispatch, Engine, View


class Roles:
    """Trained roles with their engines, and frozen networks (teachers, rewards) computed in `precision`."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        frozen: Mapping[str, nn.Module] | None = None,
        *,
        precision: str = "fp32",
    ) -> None:
        self.engines = dict(engines)
        self.active: str | None = None
        self._frozen = {name: Dispatch(network, precision) for name, network in (frozen or {}).items()}
        assert not self.engines.keys() & self._frozen.keys(), "a role is trained or frozen, not both"
        for engine in self.engines.values():
            engine.freeze()
        for dispatch in self._frozen.values():
            dispatch.requires_grad_(False).eval()

    def module(self, role: str) -> Any:
        """The network of `role`, to call now: a view that must not be kept beyond the current phase."""
        if role in self._frozen:
            dispatch = self._frozen[role]
            return View(dispatch.network, dispatch)
        return self._engine(role).view(own_phase=role == self.active)

    def networks(self) -> dict[str, nn.Module]:
        """Those of all roles, trained or frozen."""
        trained = {role: engine.network for role, engine in self.engines.items()}
        return trained | {role: dispatch.network for role, dispatch in self._frozen.items()}

    def not_finite(self) -> dict[str, list[str]]:
        """Names of the parameters that hold NaN or infinity, by the role of their frozen network."""
        networks = {role: dispatch.network for role, dispatch in self._frozen.items()}
        return {
            role: [name for name, p in network.named_parameters() if not p.isfinite().all()]
            for role, network in networks.items()
        }

    def engine(self, role: str) -> Engine:
        """The engine of `role`, in its own phase only."""
        assert role == self.active, f"the engine of {role} is used in its own phase, now is {self.active}"
        return self._engine(role)

    @contextmanager
    def phase(self, role: str) -> Iterator[Engine]:
        """Train `role`: its parameters require gradients meanwhile, those of all other roles do not."""
        assert self.active is None, f"the phase of {self.active} has not ended"
        engine = self._engine(role)
        self.active = role
        engine.unfreeze()
        try:
            yield engine
        finally:
            engine.zero_grad()
            engine.freeze()
            self.active = None

    def _engine(self, role: str) -> Engine:
        assert role in self.engines, f"no role {role}; there are {sorted({*self.engines, *self._frozen})}"
        return self.engines[role]
