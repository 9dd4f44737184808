"""How long the parts of a rollout take: made only where somebody asks, as it makes the host wait for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds of each part of a rollout, in order; `device` is synchronised at both ends of a part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: list[tuple[str, float]] = []
        """Name and seconds: ``denoise`` begins a chunk, ``clean`` is its clean pass; further ones are the caller's."""

    def now(self) -> float:
        """Seconds, after all that the device has been given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def total(self, name: str) -> float:
        """Seconds of all parts of a name."""
        return sum(seconds for part, seconds in self.parts if part == name)


@contextmanager
def measured(clock: Clock | None, name: str) -> Iterator[None]:
    """Measure what happens inside as a part; without a clock, nothing is measured and nothing waits."""
    if clock is None:
        yield
        return
    start = clock.now()
    yield
    clock.parts.append((name, clock.now() - start))
