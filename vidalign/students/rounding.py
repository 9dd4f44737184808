"""What rounding leaves of an update.

A base is published in 16 bits, an update of fine-tuning is small: added in bf16, most of it lies below half a unit in
the last place and is gone. So weights are trained and kept in fp32, and what a rounded file lost is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Rounding(NamedTuple):
    """What rounded weights have of an update ``d``."""

    lost: float
    """``1 - <r, d> / <d, d>`` with r the update in the rounded weights, at least 0: 1 has lost it."""
    error: float
    """``|r - d| / |d|``: what was lost, and the noise of what was rounded up; beyond 1 it is mostly noise."""


def rounding(start: Mapping[str, Tensor], trained: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Rounding | None:
    """What rounding to `dtype` does to ``d = trained - start``, over all tensors; r is the difference of both rounded.

    start: the weights that training began with, by name; trained: name and tensor, fp32 or wider; tensors without a
    start are left out. None where nothing has changed.
    """
    kept = whole = wrong = 0.0
    for name, value in trained:
        if name not in start or not value.is_floating_point():
            continue
        before, after = start[name].double(), value.double()
        update = after - before
        stays = value.to(dtype).double() - start[name].to(dtype).double()
        kept, whole = kept + float((stays * update).sum()), whole + float(update.square().sum())
        wrong += float((stays - update).square().sum())
    return Rounding(max(0.0, 1 - kept / whole), math.sqrt(wrong / whole)) if whole else None
