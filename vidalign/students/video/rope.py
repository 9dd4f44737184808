"""Rotary position embedding over (frame, row, column), with positions given at read time.

As in Wan2.1: the head dimension is split into time, height and width parts, pairs of neighbouring channels are rotated.
Angles are always computed in float64. `diffusers` numerics rotate in fp32 (or the tensor's own float64), `wan` rotates
in complex128 as the original does. They are 7e-5 apart in an fp32 network.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vidalign.errors import UserError
from vidalign.students.video.spec import MAX_POSITIONS


@lru_cache(maxsize=8)
def _angles(dim: int) -> Tensor:
    """`[MAX_POSITIONS, dim / 2]` float64."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(torch.arange(MAX_POSITIONS, dtype=torch.float64), frequencies)


class RotaryTables:
    """Makes and keeps the rotary factors for lists of frame positions."""

    def __init__(self, head_dim: int, numerics: str) -> None:
        space = 2 * (head_dim // 6)
        self.dims = (head_dim - 2 * space, space, space)
        self.dtype = torch.complex128 if numerics == "wan" else torch.complex64
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def factors(self, positions: tuple[int, ...], grid: tuple[int, int], device: torch.device) -> Tensor:
        """Complex unit factors `[frames * rows * columns, 1, head_dim / 2]` for frames at `positions`.

        Raises UserError for a position outside 0..1023.
        """
        key = (positions, grid, device)
        if key not in self._made:
            if len(self._made) >= 128:
                self._made.clear()
            with torch.inference_mode(False):  # kept for later forwards, which may need gradients
                self._made[key] = self._make(positions, grid).to(device)
        return self._made[key]

    def _make(self, positions: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
        last = max((*positions, grid[0] - 1, grid[1] - 1))
        if last >= MAX_POSITIONS:
            raise UserError(
                f"position {last} is past the rotary table of {MAX_POSITIONS} entries",
                where="student.cache.rope",
                why="absolute positions grow with the length of the video",
                fix="generate fewer frames, or use a window with rope: relative",
            )
        frames, (rows, columns) = len(positions), grid
        t, h, w = (_angles(dim) for dim in self.dims)
        parts = (
            t[list(positions)].view(frames, 1, 1, -1).expand(frames, rows, columns, -1),
            h[:rows].view(1, rows, 1, -1).expand(frames, rows, columns, -1),
            w[:columns].view(1, 1, columns, -1).expand(frames, rows, columns, -1),
        )
        angles = torch.cat(parts, dim=-1).flatten(0, 2).unsqueeze(1)
        return torch.polar(torch.ones_like(angles), angles).to(self.dtype)


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of `[B, S, heads, dim]` by complex factors `[S, 1, dim / 2]`, or by their real
    and imaginary parts `[S, 1, dim / 2, 2]`, of which a compiler makes one kernel. Both agree to rounding."""
    double = factors.dtype in (torch.complex128, torch.float64)
    pairs = x.to(torch.float64 if double else torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if factors.is_complex():
        turned = torch.view_as_real(torch.view_as_complex(pairs) * factors)
    else:
        (a, b), (cos, sin) = pairs.unbind(-1), factors.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return turned.flatten(-2).type_as(x)
