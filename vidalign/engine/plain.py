"""The engine on torch alone: one process, or several that average one flat gradient buffer a step.

No DDP: its hooks reduce in every backward, while we take k backwards a step and k may vary; one all-reduce
a step is all that is needed.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.engine import distributed
from vidalign.engine.base import Engine
from vidalign.engine.checkpoint import check_shapes, read_tensors, write_tensors
from vidalign.engine.config import EngineConfig, OptimizerConfig
from vidalign.engine.optimizers import make_optimizer, make_schedule


class PlainEngine(Engine):
    """Trains one network by torch alone; several processes average gradients."""

    def __init__(self, network: nn.Module, config: EngineConfig, optimizer: OptimizerConfig, total_steps: int) -> None:
        super().__init__(network, config)
        self.clip = optimizer.clip
        self.optimizer = make_optimizer(optimizer, self.named_trainable())
        self.schedule = make_schedule(optimizer, self.optimizer, total_steps)
        _broadcast(network)
        # torch warns where the first update is skipped: the schedule follows the steps all the same
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _entry(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.dispatch(name, *args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> float:
        for parameter in self.trainable:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        average_gradients(self.trainable)
        norm = float(nn.utils.clip_grad_norm_(self.trainable, self.clip or math.inf))
        if math.isfinite(norm):
            self.optimizer.step()
        self.zero_grad()
        self.schedule.step()
        self.steps += 1
        return norm

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, directory: Path) -> None:
        if distributed.rank() != 0:
            return
        state = {
            "weights": {name: p.detach() for name, p in self.named_trainable().items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "steps": self.steps,
        }
        write_tensors(directory / "engine.pt", state)

    def load(self, directory: Path) -> None:
        state = read_tensors(directory / "engine.pt")
        parameters = self.named_trainable()
        check_shapes(directory / "engine.pt", state["weights"], parameters)
        with torch.no_grad():
            for name, weight in state["weights"].items():
                parameters[name].copy_(weight)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.steps = int(state["steps"])


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks, through one flat buffer a dtype."""
    if distributed.world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for dtype in sorted({g.dtype for g in gradients}, key=str):
        chosen = [g for g in gradients if g.dtype == dtype]
        flat = distributed.all_reduce_mean(torch.cat([g.reshape(-1) for g in chosen]))
        for gradient, mean in zip(chosen, flat.split([g.numel() for g in chosen]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _broadcast(network: nn.Module) -> None:
    """Rank 0's weights and buffers everywhere, so that ranks cannot start apart."""
    if distributed.world_size() == 1:
        return
    import torch.distributed as dist

    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            dist.broadcast(tensor.data, src=0)
