"""What a network predicts, velocity or x0, turned into the other: ``x0 = x_t - sigma velocity``, in float64."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-3
"""Floor of sigma where x0 is turned into velocity."""


def levels(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigma ``[N]`` or ``[N, F]`` for every frame of `x` ``[N, F, ...]``: ``[N, F]``."""
    assert sigma.ndim in (1, 2), "sigma must be [N] or [N, F]"
    return (sigma if sigma.ndim == 2 else sigma.unsqueeze(1)).expand(x.shape[:2])


def converted(raw: Tensor, x_t: Tensor, sigma: Tensor, prediction: str, output: str) -> Tensor:
    """`raw`, which is `prediction`, as `output`, in the dtype of `x_t` ``[N, F, C, H, W]``."""
    assert output in ("velocity", "x0"), "output is velocity or x0"
    raw = raw.to(x_t.dtype)
    if output == prediction:
        return raw
    level = levels(sigma, x_t).double()[..., None, None, None]
    if output == "x0":
        return (x_t.double() - level * raw.double()).to(x_t.dtype)
    return ((x_t.double() - raw.double()) / level.clamp_min(EPS)).to(x_t.dtype)
