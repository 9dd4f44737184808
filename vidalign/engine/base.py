"""One interface over the training engines, and the view through which objectives see a network.

One optimiser step is k times (forward, backward), then `step()`; k may differ from step to step but not
between ranks. `backward` adds the gradient of exactly the loss it is given (divide by k yourself);
gradients are averaged over ranks inside `step()`. A parameter without a gradient counts as gradient zero.
A step whose gradient norm is not finite leaves weights and optimiser state alone on every backend; the
schedule goes on.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidalign.engine import distributed, zero3
from vidalign.engine.config import EngineConfig, OptimizerConfig

if TYPE_CHECKING:
    from vidalign.engine.policies import Policies


class Dispatch(nn.Module):
    """Root module of an engine: `forward(name, ...)` calls that method of `network` in the compute precision.

    DeepSpeed hooks only `forward`, while a student has several methods; autocast sits inside, because
    DeepSpeed switches an outer one off.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network = network
        self.precision = precision

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16":
            return nullcontext()
        first = next(self.network.parameters())
        return torch.autocast(first.device.type, torch.bfloat16)

    def forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self.autocast():
            return getattr(self.network, name)(*args, **kwargs)


class View:
    """A network as objectives see it: its own methods run through `entry`, all else is the network's."""

    def __init__(self, network: nn.Module, entry: Any) -> None:
        self._network = network
        self._entry = entry

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._entry("forward", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._network, name)
        is_own_method = getattr(value, "__self__", None) is self._network and not hasattr(nn.Module, name)
        return functools.partial(self._entry, name) if is_own_method or name == "forward" else value


class Engine(ABC):
    """Trains the parameters of `network` that require a gradient when the engine is built."""

    def __init__(self, network: nn.Module, config: EngineConfig) -> None:
        self.network = network
        self.config = config
        self.trainable = [p for p in network.parameters() if p.requires_grad]
        assert self.trainable, "an engine needs a parameter that requires a gradient"
        self.dispatch = Dispatch(network, config.precision)
        self.steps = 0
        self.skipped = 0
        """Updates dropped since this engine was built, because their gradient norm was not finite."""
        self.skipped_in_row = 0

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """Learning rate of the next step."""

    @abstractmethod
    def _entry(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call `network.<name>` in the engine's own phase."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the scalar `loss`."""

    @abstractmethod
    def _update(self) -> float:
        """Average gradients over ranks, clip, update, clear; the global gradient norm before clipping."""

    def step(self) -> float:
        """One update; returns the global gradient norm before clipping. One that is not finite counts as skipped."""
        norm = self._update()
        finite = math.isfinite(norm)
        self.skipped_in_row = 0 if finite else self.skipped_in_row + 1
        self.skipped += not finite
        return norm

    @abstractmethod
    def zero_grad(self) -> None:
        """Drop the gradients gathered since the last step."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write trained weights, optimiser, schedule and step count below `directory`; all ranks call it."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, into a freshly built engine; all ranks call it."""

    def gathered(self) -> AbstractContextManager[None]:
        """Keep the whole network on every rank meanwhile; use it around a rollout. No-op below ZeRO-3."""
        return nullcontext()

    def view(self, *, own_phase: bool) -> Any:
        """The network through the engine in its own phase, through the plain module otherwise."""
        return View(self.network, self._entry if own_phase else self.dispatch)

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their names in the network."""
        chosen = {id(p) for p in self.trainable}
        return {name: p for name, p in self.network.named_parameters() if id(p) in chosen}

    def not_finite(self) -> list[str]:
        """Names of the network's parameters that hold NaN or infinity on any rank; all ranks call it."""
        here = [name for name, p in self.network.named_parameters() if not zero3.storage(p).isfinite().all()]
        return sorted({name for names in distributed.all_gather_object(here) for name in names})

    def weight_norm(self) -> float:
        """Norm of all trained weights, whole over the ranks; all ranks call it."""
        own = shared = 0.0
        for parameter in self.trainable:
            square = float(torch.linalg.vector_norm(zero3.own_part(parameter).detach().float())) ** 2
            own, shared = (own + square, shared) if zero3.is_divided(parameter) else (own, shared + square)
        return math.sqrt(shared + sum(distributed.all_gather_object(own)))

    def freeze(self) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(False)

    def unfreeze(self) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(True)


def set_precision(network: nn.Module, precision: str, keep: Collection[nn.Parameter] = ()) -> None:
    """fp32 and fp64 cast the whole network. bf16 makes fp32 masters of what is trained, and keeps in bf16 the frozen
    weights that autocast would cast to it at every use, those of linear and convolution layers: results stay the same.

    keep: frozen weights that are left as they are.
    """
    if precision != "bf16":
        network.to(torch.float64 if precision == "fp64" else torch.float32)
        return
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    low, other = set(), {id(parameter) for parameter in keep}
    for module in network.modules():
        own = {id(parameter) for parameter in module.parameters(recurse=False) if not parameter.requires_grad}
        low |= own if isinstance(module, CAST) else set()
        other |= set() if isinstance(module, CAST) else own  # an embedding may share its weights with the last layer
    for parameter in network.parameters():
        if id(parameter) in low - other:
            parameter.data = parameter.data.bfloat16()


CAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights autocast reads in bf16."""


def build_engine(
    config: EngineConfig,
    optimizer: OptimizerConfig,
    network: nn.Module,
    total_steps: int,
    policies: Policies | None = None,
) -> Engine:
    """The engine of `network`, frozen until its phase begins.

    `policies` are the named weight sets of the same network, if it has any: full fine-tuning takes its
    snapshots here, when the weights lie as the engine keeps them. Imports DeepSpeed only when asked for.
    """
    set_precision(network, config.precision, policies.masters() if policies else ())
    engine: Engine
    if config.name == "deepspeed":
        from vidalign.engine.deepspeed import DeepSpeedEngine

        swaps = policies is not None and policies.adapter is None
        engine = DeepSpeedEngine(network, config, optimizer, total_steps, weights_are_swapped=swaps)
    else:
        from vidalign.engine.plain import PlainEngine

        engine = PlainEngine(network, config, optimizer, total_steps)
    if policies is not None:
        policies.attach()
    engine.freeze()
    return engine
