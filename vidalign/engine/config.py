"""What a recipe says about engines, optimisers and adapters; plain dataclasses, no torch.

Field defaults are the ones that suit LoRA on one process. Values out of range raise `UserError` when the
dataclass is built, so a recipe is refused before any weight is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vidalign.errors import UserError
from vidalign.ranges import require

Precision = Literal["auto", "fp32", "bf16", "fp64"]


MISSING = "DeepSpeed cannot be imported"
INSTALL = "install torch first, then: pip install 'vidalign[deepspeed]'; or choose engine.name=plain"
"""How to get DeepSpeed: its build needs torch."""


@dataclass
class EngineConfig:
    """The section `engine`: what trains, in which precision, over how many processes."""

    name: Literal["plain", "deepspeed"] = "plain"
    """`plain` is torch alone, on one or several processes; `deepspeed` adds ZeRO."""
    zero_stage: int = 2
    """ZeRO stage 0-3 of `deepspeed`. 2 suits LoRA up to 5B parameters; 3 divides the weights too."""
    precision: Precision = "fp32"
    """Compute precision. With `bf16` (autocast) trained weights and optimiser state stay fp32, and frozen weights are
    kept in bf16, as they are computed with; `auto` is bf16 where the
    device computes it natively, else fp32; `fp64` is for comparing runs and needs `plain`."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What DeepSpeed keeps in host memory; `parameters` needs stage 3."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(f"zero_stage is {self.zero_stage}", where="engine.zero_stage", fix="use 0 to 3")
        if self.name == "deepspeed" and self.precision == "fp64":
            raise UserError(
                "DeepSpeed has no fp64",
                where="engine.precision",
                why="ZeRO keeps fp32 masters",
                fix="use engine.name=plain, or fp32",
            )
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if needed and (self.name != "deepspeed" or self.zero_stage < needed):
            raise UserError(
                f"offload={self.offload} needs DeepSpeed with zero_stage >= {needed}", where="engine.offload"
            )


@dataclass
class OptimizerConfig:
    """The optimiser of one role, with its learning-rate schedule."""

    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """torch's optimiser of that name; `muon` takes the matrices inside blocks (ten times the learning rate) and
    leaves the rest to AdamW. Plain engine only."""
    learning_rate: float = 1e-4
    """Peak learning rate, after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's averages of the gradient and of its square."""
    weight_decay: float = 0.0
    """Decoupled weight decay for adamw, L2 for sgd."""
    clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 1/warmup_steps of the peak."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: stay, or fall to 0 at the last step along half a cosine."""

    def __post_init__(self) -> None:
        require(self, "learning_rate", "weight_decay", "clip", "warmup_steps", least=0)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must lie in 0..1, 1 excluded")

    def factor(self, step: int, total_steps: int) -> float:
        """Learning rate of the 0-based `step` as a fraction of the peak, in [0, 1]."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        span = max(1, total_steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / span)))


@dataclass
class AdapterConfig:
    """Low-rank adapters (LoRA) of the student."""

    rank: int = 32
    """Rank of the low-rank update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    targets: str | list[str] = "blocks"
    """`blocks` = every linear layer of the transformer blocks. Of a vision-language model `text` = those of the
    language model's blocks, `vision` = those of the vision tower. Otherwise patterns of layer names: a tail
    (`attn1.to_q`) or a glob (`transformer.blocks.*.ffn.*`)."""
    start: str = ""
    """Folder of an adapter to go on from, as PEFT writes it, with this rank, alpha and layers; empty = a new one."""
    frozen_precision: Literal["fp32", "bf16"] = "fp32"
    """What the adapters of weight sets that are not trained (`old`, `reference`) are kept in under `engine.precision:
    bf16`. bf16 halves them and rounds what a decaying average gathers; the moving average of the weights stays fp32."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank is {self.rank}", where="student.adapter.rank", fix="use a rank >= 1")
        if not self.alpha > 0:
            raise UserError(f"alpha is {self.alpha}", where="student.adapter.alpha", fix="use a positive number")
