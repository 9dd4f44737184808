"""What rounding leaves of an update.

A base is published in 16 bits, an update of fine-tuning is small: added in bf16, most of it lies below half a unit in
the last place and is gone. So weights are trained and kept in fp32, and what a rounded file lost is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def lost_share(start: Mapping[str, Tensor], trained: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> float | None:
    """The share of the update ``d = trained - start`` that is not in weights rounded to `dtype`.

    ``1 - <round(trained) - round(start), d> / <d, d>``, over all tensors: 0 keeps the whole update, 1 loses it.
    start: the weights that training began with, by name; trained: name and tensor, fp32 or wider; tensors without a
    start are left out. None where nothing has changed.
    """
    kept = whole = 0.0
    for name, value in trained:
        if name not in start or not value.is_floating_point():
            continue
        before, after = start[name].double(), value.double()
        update = after - before
        stays = value.to(dtype).double() - start[name].to(dtype).double()
        kept, whole = kept + float((stays * update).sum()), whole + float(update.square().sum())
    return 1 - kept / whole if whole else None
