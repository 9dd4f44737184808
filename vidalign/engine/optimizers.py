"""Optimisers by name: torch's AdamW and SGD, and Muon for hidden matrices with AdamW for everything else.

Muon (Jordan et al. 2024; `torch.optim.Muon`) orthogonalises the momentum of a weight matrix. It is meant for the
matrices inside the blocks; embeddings, heads, biases and modulation tables stay with AdamW, as its authors advise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.engine.config import OptimizerConfig
from vidalign.errors import UserError

BLOCKS = re.compile(r"(^|\.)(blocks|layers)\.\d")
"""Where the names of diffusers and transformers hold the blocks of a network."""
MUON_SCALE = 10.0
"""Learning rate of Muon's matrices as a multiple of the optimiser's."""


class Muon(torch.optim.Muon):
    """torch's Muon; on a CPU matrices are orthogonalised in their own dtype. torch does so in bf16, which a CPU without
    units for it computes twenty times slower than fp32."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "engines step without a closure"
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            super().step()  # type: ignore[no-untyped-call]  # torch does not type it
            return
        for group in self.param_groups:
            for matrix in (p for p in group["params"] if p.grad is not None):
                state, momentum = self.state[matrix], group["momentum"]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"]
                average.lerp_(matrix.grad, 1 - momentum)
                update = orthogonalized(
                    matrix.grad.lerp(average, momentum), group["ns_coefficients"], group["ns_steps"]
                )
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of ``[rows, columns]``, by the quintic Newton-Schulz
    iteration of Muon (Jordan et al. 2024): singular values end in about 0.7 .. 1.2 instead of at 1."""
    a, b, c = coefficients
    wide: Tensor = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T if matrix.size(0) > matrix.size(1) else wide


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimiser over two: Muon on `matrices`, AdamW on `others`; a schedule scales both learning rates."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], config: OptimizerConfig) -> None:
        rate, decay = config.learning_rate, config.weight_decay
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, rate * MUON_SCALE, weight_decay=decay, momentum=0.95, adjust_lr_fn="original")
        ]
        if others:  # adapters are matrices all
            betas = (config.betas[0], config.betas[1])
            self.parts.append(torch.optim.AdamW(others, rate, betas=betas, weight_decay=decay))
        super().__init__([{"params": [*matrices, *others]}], {"lr": config.learning_rate})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "engines step without a closure"
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def make_optimizer(config: OptimizerConfig, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of named `parameters`; torch's plain implementations, because the fused ones round differently.

    Raises `UserError` when `muon` finds no matrix inside blocks.
    """
    every = list(parameters.values())
    if config.optimizer == "sgd":
        return torch.optim.SGD(every, config.learning_rate, weight_decay=config.weight_decay)
    if config.optimizer == "muon":
        matrices = [p for name, p in parameters.items() if p.ndim == 2 and BLOCKS.search(name)]
        chosen = {id(p) for p in matrices}
        if not matrices:
            raise UserError("muon found no weight matrix inside blocks", where="trainer.optimizer", fix="use adamw")
        return MuonWithAdamW(matrices, [p for p in every if id(p) not in chosen], config)
    return torch.optim.AdamW(
        every, config.learning_rate, betas=(config.betas[0], config.betas[1]), weight_decay=config.weight_decay
    )


def make_schedule(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up, then constant or cosine, as a factor of every group's peak learning rate."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.factor(step, total_steps))
