"""One recorded step of every chunk, where the first chunk has more steps than the others."""

from __future__ import annotations

from typing import Any

import torch

from vidalign.objectives.parts.rollouts import states_at
from vidalign.students.video.rollout.plan import ChunkStates, Rollout

FIRST, OTHERS = [1.0, 0.8, 0.6, 0.4], [1.0, 0.5]


def recorded(chunk: int, sigmas: list[float]) -> ChunkStates:
    """Every entry of ``x_t`` is 100 chunk + 10 sample + step, of ``x0`` the negative of it."""
    values = 100 * chunk + 10 * torch.arange(3).view(3, 1) + torch.arange(len(sigmas))
    x_t = values.float().view(3, len(sigmas), 1, 1, 1, 1).expand(3, len(sigmas), 2, 1, 1, 1)
    return ChunkStates(sigmas, x_t, -x_t)


def test_a_chunk_with_its_own_levels_is_at_the_same_fraction_of_them() -> None:
    latents: Any = torch.zeros(3, 4, 1, 1, 1)
    context: Any = None
    rollout = Rollout(latents, context, slice(0, 4), {0: recorded(0, FIRST), 1: recorded(1, OTHERS)})
    found = states_at(rollout, torch.tensor([0.0, 0.45, 0.99], dtype=torch.float64))
    assert found["step"].tolist() == [[0, 0], [1, 0], [3, 1]]
    assert found["sigma"].tolist() == [[1.0, 1.0, 1.0, 1.0], [0.8, 0.8, 1.0, 1.0], [0.4, 0.4, 0.5, 0.5]]
    assert found["x_t"][..., 0, 0, 0].tolist() == [[0, 0, 100, 100], [11, 11, 110, 110], [23, 23, 121, 121]]
    assert torch.equal(found["x0"], -found["x_t"]) and found["latents"] is latents
