"""Random weights under the key names of the tiny autoencoder of Wan (taew2_1: 16 channels, patch 1; taew2_2: 48, 2)."""

from __future__ import annotations

import torch
from torch import Tensor

STAGES = ((256, 128, 1), (128, 64, 2), (64, 64, 2))


def published(channels: int, patch: int, extra: int = 1) -> dict[str, Tensor]:
    """Tensors under the names of the published files; extra: how many times more frames the layers of growth hold."""
    numbers, weights = torch.Generator().manual_seed(channels), {}

    def conv(name: str, after: int, before: int, size: int = 3, bias: bool = True) -> None:
        scale = 1.5 / (before * size * size) ** 0.5
        weights[f"{name}.weight"] = scale * torch.randn(after, before, size, size, generator=numbers)
        if bias:
            weights[f"{name}.bias"] = 0.1 * torch.randn(after, generator=numbers)

    conv("encoder.0", 64, 3 * patch**2)
    conv("decoder.1", 256, channels)
    at = 3
    for width, after, times in STAGES:
        for _ in range(3):
            for part, before in ((0, 2 * width), (2, width), (4, width)):
                conv(f"decoder.{at}.conv.{part}", width, before)
            at += 1
        conv(f"decoder.{at + 1}.conv", extra * times * width, width, 1, bias=False)
        conv(f"decoder.{at + 2}", after, width, bias=False)
        at += 3
    conv("decoder.22", 3 * patch**2, 64)
    return weights
