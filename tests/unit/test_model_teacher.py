"""The bidirectional teacher's sampler against an oracle that knows the clip."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign.students.video.bidirectional import sample_bidirectional

CHUNK, STEPS, SHAPE = 2, 5, (3, 4, 4)


class Oracle(torch.nn.Module):
    """``velocity = (x_t - x0) / sigma`` where there is noise, nonsense where there is none."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0, self.asked = x0, []
        self.spec = SimpleNamespace(cache=SimpleNamespace(chunk_frames=CHUNK))
        self.chunk_shape = (CHUNK, *x0.shape[2:])

    def bidirectional(self, x_t: Tensor, sigma: Tensor, text: Any) -> Tensor:
        self.asked.append((x_t.clone(), sigma.clone()))
        level = sigma[..., None, None, None]
        return torch.where(level > 0, (x_t - self.x0) / level.clamp(min=1e-9), 100.0)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_chunks_are_made_in_turn_behind_the_finished_ones() -> None:
    x0 = torch.randn(2, 3 * CHUNK, *SHAPE, generator=torch.Generator().manual_seed(0))
    oracle, seen = Oracle(x0), []
    levels = {"steps": STEPS, "shift": 2.0, "eta": 1.0}
    made = sample_bidirectional(oracle, 3 * CHUNK, torch.zeros(2, 1, 1), generators(1, 2), **levels)
    assert torch.allclose(made, x0, atol=1e-5) and len(oracle.asked) == 3 * STEPS
    for call, (x_t, sigma) in enumerate(oracle.asked):
        done = call // STEPS * CHUNK
        assert (sigma[:, :done] == 0).all() and torch.allclose(x_t[:, :done], x0[:, :done], atol=1e-5)
        level = sigma[:, -1:]
        assert (sigma[:, done:] == level).all() and (level == 1).all() == (call % STEPS == 0)
        sigma_now = float(level[0])
        seen.append(((x_t - (1 - sigma_now) * x0) / sigma_now)[:, done:].flatten())
    assert all(abs(float(noise.std()) - 1) < 0.2 for noise in seen), "x_t = (1 - sigma) x0 + sigma noise"
    pairs = [torch.stack(pair) for pair in itertools.pairwise(seen) if len(pair[0]) == len(pair[1])]
    assert all(abs(float(torch.corrcoef(pair)[0, 1])) < 0.3 for pair in pairs), "every step draws anew"


def test_eta_zero_is_euler() -> None:
    class Field(Oracle):
        def bidirectional(self, x_t: Tensor, sigma: Tensor, text: Any) -> Tensor:
            return torch.sin(x_t) + sigma[..., None, None, None]

    x = torch.randn(1, CHUNK, *SHAPE, generator=generators(3)[0]).double()
    levels = torch.linspace(1, 0, STEPS + 1).double()
    levels_of = {"steps": STEPS, "shift": 1.0, "eta": 0.0}
    made = sample_bidirectional(Field(x), CHUNK, torch.zeros(1, 1, 1), generators(3), **levels_of)
    for now, after in itertools.pairwise(levels.tolist()):
        x = x + (after - now) * (x.sin() + now)
    assert torch.allclose(made.double(), x, atol=1e-5)


def test_levels_are_warped() -> None:
    oracle = Oracle(torch.zeros(1, CHUNK, 1, 1, 1))
    sample_bidirectional(oracle, CHUNK, torch.zeros(1, 1, 1), generators(0), steps=4, shift=3.0)
    assert [float(sigma[0, 0]) for _, sigma in oracle.asked] == pytest.approx([1.0, 0.9, 0.75, 0.5])


def test_a_sample_depends_on_its_own_generator() -> None:
    class Drift(Oracle):
        def bidirectional(self, x_t: Tensor, sigma: Tensor, text: Any) -> Tensor:
            return 0.5 * x_t

    model = Drift(torch.zeros(1, CHUNK, *SHAPE))
    both = sample_bidirectional(model, 2 * CHUNK, torch.zeros(2, 1, 1), generators(5, 6), steps=3)
    alone = sample_bidirectional(model, 2 * CHUNK, torch.zeros(1, 1, 1), generators(6), steps=3)
    assert torch.equal(both[1:], alone) and not both[0].equal(both[1])
