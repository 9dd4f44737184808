"""An adversary of a video world's scorer that changes the pixels of clips."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch


def attacked(
    scorer: ModuleType, clips: Callable[..., torch.Tensor], captions: list[str], seed: int, steps: int
) -> torch.Tensor:
    """Adam on the logarithm of the three training rewards, from a frozen clip with a little noise.

    clips: makes ground truth ``[B, F, 3, H, W]`` of captions with a ``generator``.
    """
    generator = torch.Generator().manual_seed(seed)
    start = clips(captions, generator=generator)[:, :1].expand(-1, 12, -1, -1, -1)
    pixels = (start + 0.05 * torch.randn(start.shape, generator=generator)).clamp(0.02, 0.98).requires_grad_()
    optimiser = torch.optim.Adam([pixels], lr=0.03)
    for _ in range(steps):
        scores = scorer.score(pixels.clamp(0, 1), captions)
        total = sum(scores[name].clamp(min=1e-4).log().sum() for name in scorer.SCORES[:3])
        optimiser.zero_grad()
        (-total).backward()
        optimiser.step()
    return pixels.detach().clamp(0, 1)
