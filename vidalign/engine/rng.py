"""Counter-based random numbers: a generator is a pure function of (seed, purpose, step, sample).

Nothing is carried from step to step, so resuming needs only the step, and a sample gets the same numbers
on any number of processes. A decision on which all ranks must agree leaves the rank out of the key.
Philox-style counters [Salmon et al. 2011] in spirit; here the key is hashed into torch's own seed.
"""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, purpose: str, step: int, sample: int = 0) -> int:
    """63-bit seed of a key; other keys give independent values."""
    text = f"{int(seed)}|{int(step)}|{int(sample)}|{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(
    seed: int, purpose: str, step: int, sample: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator of the key. CPU and CUDA generators of one key give different numbers."""
    return torch.Generator(device=device).manual_seed(key(seed, purpose, step, sample))
