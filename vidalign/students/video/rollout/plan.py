"""What a rollout generates: a shared prefix, a branch generated once per candidate, a suffix that finishes
the video.

One plan serves all methods: independent rollouts = prefix 0; Astrolabe = prefix s, branch W, no suffix;
AR-CoPO = prefix p - 1, branch 1 with neighbour noise, suffix to the end with shared noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vidalign.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.context import Context


@dataclass(frozen=True)
class RolloutPlan:
    """Lengths in chunks; the branch and suffix are generated `group_size` times per prompt."""

    prefix: int
    branch: int
    suffix: int = 0
    group_size: int = 1
    record: tuple[int, ...] = ()
    """Chunks (counted from the start of the video) whose sampler states are kept."""
    keep_final: bool = False
    """Also run the clean pass of the last chunk, so that `Rollout.final` can be continued."""

    def __post_init__(self) -> None:
        if min(self.prefix, self.suffix) < 0 or self.branch < 1 or self.group_size < 1:
            raise UserError(f"impossible rollout plan {self}", fix="prefix, suffix >= 0; branch, group_size >= 1")
        wrong = [c for c in self.record if not 0 <= c < self.chunks]
        if wrong:
            raise UserError(f"cannot record chunks {wrong}", why=f"the plan has {self.chunks} chunks")

    @property
    def chunks(self) -> int:
        """Length of the video."""
        return self.prefix + self.branch + self.suffix


@dataclass
class ChunkStates:
    """What the sampler saw and predicted for one chunk, at `sigmas[i]`."""

    sigmas: list[float]
    x_t: Tensor
    """`[N, steps, chunk_frames, C, H, W]`"""
    x0: Tensor
    """Predictions of x0, like x_t."""

    @classmethod
    def cat(cls, parts: list[ChunkStates]) -> ChunkStates:
        """The states of all rows, from those of parts of them."""
        return cls(parts[0].sigmas, torch.cat([p.x_t for p in parts]), torch.cat([p.x0 for p in parts]))


@dataclass
class Rollout:
    """A batch of generated latents with what a loss needs to replay them."""

    latents: Tensor
    """`[N, F, C, H, W]`, N = prompts * group_size, candidates of a prompt adjacent."""
    context: Context
    """The clean past before the branch, batch = prompts; empty when the plan has no prefix."""
    branch: slice
    """Frames of the branch."""
    states: dict[int, ChunkStates] = field(default_factory=dict)
    """Recorded states by chunk; prefix chunks have one row per prompt."""
    chunk_forwards: int = 0
    """Network calls on one chunk, per prompt."""
    final: Context | None = None
    """The clean past after the last chunk, when the plan keeps it."""
