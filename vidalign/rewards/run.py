"""What a reward that learns may use of the training run that it is attached to; a `TrainContext` has all of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vidalign.engine.roles import Roles


class Run(Protocol):
    """A training run, from the side of a reward."""

    seed: int
    step: int
    micro_batch: int
    device: torch.device
    roles: Roles
    metrics: dict[str, float]
    """What rewards log of the current step."""

    @property
    def teacher(self) -> Any:
        """What the recipe's teacher section names."""

    @property
    def student(self) -> Any:
        """The student; runs through its engine in its own phase only."""

    @property
    def chunks(self) -> int:
        """Chunks of a video."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def gathered(self) -> AbstractContextManager[None]:
        """Keep the student whole on this process meanwhile (ZeRO-3); around rollouts."""

    def gather(self, tensor: Tensor) -> Tensor:
        """``[N, ...]`` of every process, concatenated in rank order."""

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Features ``[B, L, D]`` of prompts."""

    def encode(self, clips: Tensor) -> Tensor:
        """Clips ``[B, F, 3, H, W]`` in [0, 1] to latents."""

    def decode(self, latents: Tensor, history: Tensor | None = None) -> Tensor:
        """Latents to clips ``[B, F, 3, H, W]`` in [0, 1]."""
