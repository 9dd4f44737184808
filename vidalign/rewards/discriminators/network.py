"""The contract of a discriminator network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vidalign.rewards.discriminators.base import DiscriminatorKind


class Discriminator(DiscriminatorKind, nn.Module):
    """Scores clips for prompts. The head has no bias, since its gradient is exactly 0 and Adam would make drift of the
    rounding noise."""

    def forward(self, clips: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores ``[B]`` of clips ``[B, F, 3, H, W]`` in [0, 1] for B prompts; comparable inside a prompt only."""
        raise NotImplementedError


def full_precision_head(head: nn.Linear, pooled: torch.Tensor) -> torch.Tensor:
    """Scores ``[B]`` of ``[B, D]`` in the precision of the head's weight. bf16 has three digits, and the loss lives on
    differences of scores."""
    with torch.autocast(pooled.device.type, enabled=False):
        scores: torch.Tensor = head(pooled.to(head.weight.dtype)).squeeze(1)
        return scores
