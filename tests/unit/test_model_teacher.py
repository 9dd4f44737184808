"""The bidirectional teacher's sampler against an oracle whose Euler steps are exact."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vidalign.teachers.model import ModelTeacher

CHUNK, STEPS = 2, 5


class Oracle(torch.nn.Module):
    """Knows the clip: ``velocity = (x_t - x0) / sigma`` where there is noise, nonsense where there is none."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0, self.asked = x0, []
        self.spec = SimpleNamespace(cache=SimpleNamespace(chunk_frames=CHUNK))

    def bidirectional(self, x_t: Tensor, sigma: Tensor, text: Any) -> Tensor:
        self.asked.append((x_t.clone(), sigma.clone()))
        level = sigma[..., None, None, None]
        return torch.where(level > 0, (x_t - self.x0) / level.clamp(min=1e-9), 100.0)


def test_chunks_are_made_in_turn_behind_the_finished_ones() -> None:
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 3 * CHUNK, 3, 4, 4, generator=g, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    before, oracle = noise.clone(), Oracle(x0)
    made = ModelTeacher(oracle, 3 * CHUNK, steps=STEPS, shift=2.0).sample(noise, torch.zeros(2, 1, 1))
    assert torch.allclose(made, x0, atol=1e-12) and torch.equal(noise, before)
    assert len(oracle.asked) == 3 * STEPS
    for call, (x_t, sigma) in enumerate(oracle.asked):
        done = call // STEPS * CHUNK
        assert (sigma[:, :done] == 0).all() and torch.allclose(x_t[:, :done], x0[:, :done], atol=1e-12)
        assert (sigma[:, done:] == sigma[:, -1:]).all() and (sigma[:, done:] > 0).all()
        if call % STEPS == 0:
            assert torch.equal(x_t[:, done:], noise[:, done:]) and (sigma[:, done:] == 1).all()


def test_levels_are_warped() -> None:
    oracle = Oracle(torch.zeros(1, CHUNK, 1, 1, 1))
    ModelTeacher(oracle, CHUNK, steps=4, shift=3.0).sample(torch.ones(1, CHUNK, 1, 1, 1), torch.zeros(1, 1, 1))
    levels = [float(sigma[0, 0]) for _, sigma in oracle.asked]
    assert levels == [1.0, *(float(torch.tensor(3 * s / (1 + 2 * s))) for s in (0.75, 0.5, 0.25))]
