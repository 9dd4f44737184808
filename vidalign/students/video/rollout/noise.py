"""The noise of a rollout as an explicit value, so that forks share exactly the draws that they should share.

Neighbour noise: Neighbor GRPO (arXiv 2511.16955), eps_i = sqrt(1 - s^2) eps* + s delta_i, each marginally
N(0, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidalign.errors import UserError
from vidalign.students.video.rollout.plan import RolloutPlan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Noise:
    """All Gaussian draws of a rollout."""

    initial: Tensor
    """`[N, F, C, H, W]`, the state at sigma 1."""
    renoise: Tensor
    """`[N, steps - 1, F, C, H, W]`, the fresh noise after each step but the last."""

    @classmethod
    def draw(
        cls,
        plan: RolloutPlan,
        shape: tuple[int, int, int, int],
        steps: int,
        generators: list[torch.Generator],
        branch: str = "independent",
        scale: float = 0.5,
        suffix: str = "independent",
    ) -> Noise:
        """Noise for one group per generator, N = len(generators) * group_size, on the generators' device.

        shape: (chunk_frames, C, H, W). The prefix is always shared inside a group. branch "independent":
        every candidate has draws of its own; "neighbour": initial noise at distance `scale` in 0..1 around a
        shared centre, renoise shared; "neighbour_all": renoise around a shared centre too. suffix "independent"
        or "shared". Shared draws come first, then candidate by candidate: the first candidates are the same for
        every group size.
        """
        if branch not in ("independent", "neighbour", "neighbour_all") or suffix not in ("independent", "shared"):
            raise UserError(
                f"unknown noise {branch!r} / {suffix!r}",
                fix="branch: independent, neighbour or neighbour_all; suffix: independent or shared",
            )
        if not 0 <= scale <= 1:
            raise UserError(f"neighbour scale {scale} is outside 0..1")
        groups = [_group(plan, shape, steps, g, branch, scale, suffix) for g in generators]
        initial, renoise = zip(*groups, strict=True)
        return cls(torch.cat(initial), torch.cat(renoise))

    @classmethod
    def like_original(
        cls, generator: torch.Generator, batch: int, chunks: int, shape: tuple[int, int, int, int], steps: int
    ) -> Noise:
        """The draw order of the public Self-Forcing code, for seed equality: all initial noise at once, then
        one draw `[batch * chunk_frames, C, H, W]` per non-final step, chunk after chunk."""
        chunk_frames = shape[0]
        device = generator.device
        initial = torch.randn(batch, chunks * chunk_frames, *shape[1:], generator=generator, device=device)
        renoise = initial.new_empty(batch, steps - 1, chunks * chunk_frames, *shape[1:])
        for at in range(0, chunks * chunk_frames, chunk_frames):
            for step in range(steps - 1):
                draw = torch.randn(batch * chunk_frames, *shape[1:], generator=generator, device=device)
                renoise[:, step, at : at + chunk_frames] = draw.unflatten(0, (batch, chunk_frames))
        return cls(initial, renoise)

    def frames(self, start: int, stop: int) -> Noise:
        """The draws of the frames start..stop."""
        return Noise(self.initial[:, start:stop], self.renoise[:, :, start:stop])

    def last(self, count: int) -> Noise:
        """The draws of the last `count` frames."""
        return self.frames(self.initial.shape[1] - count, self.initial.shape[1])

    def __getitem__(self, rows: slice) -> Noise:
        """The draws of some candidates."""
        return Noise(self.initial[rows], self.renoise[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Noise:
        return Noise(self.initial.to(device, dtype), self.renoise.to(device, dtype))


def _group(
    plan: RolloutPlan,
    shape: tuple[int, int, int, int],
    steps: int,
    generator: torch.Generator,
    branch: str,
    scale: float,
    suffix: str,
) -> tuple[Tensor, Tensor]:
    size, *rest = shape
    frames = plan.chunks * size
    a, b = plan.prefix * size, (plan.prefix + plan.branch) * size

    def normal(*dims: int) -> Tensor:
        return torch.randn(*dims, *rest, generator=generator, device=generator.device)

    initial = normal(frames).repeat(plan.group_size, 1, 1, 1, 1)
    renoise = normal(steps - 1, frames).repeat(plan.group_size, 1, 1, 1, 1, 1)
    if plan.group_size == 1 and branch == "independent":
        return initial, renoise
    for g in range(plan.group_size):
        own, own_renoise = normal(frames), normal(steps - 1, frames)
        if branch.startswith("neighbour"):
            near = math.sqrt(1 - scale**2)
            initial[g, a:b] = near * initial[g, a:b] + scale * own[a:b]
            if branch == "neighbour_all":
                renoise[g, :, a:b] = near * renoise[g, :, a:b] + scale * own_renoise[:, a:b]
        else:
            initial[g, a:b], renoise[g, :, a:b] = own[a:b], own_renoise[:, a:b]
        if suffix == "independent":
            initial[g, b:], renoise[g, :, b:] = own[b:], own_renoise[:, b:]
    return initial, renoise
