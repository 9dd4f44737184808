"""A group whose spread is noise has no part in the loss of any objective that compares candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_helpers import GROUP, accumulate, collect, make, whole
from torch import Tensor

from vidalign.objectives.base import Phase
from vidalign.rewards.base import CompositeReward

SIGNAL, NOISE = [0.1, 0.4, 0.2, 0.9], [0.5, 0.501, 0.499, 0.5004]
WEIGHTED = {
    "astrolabe": ("kl.mode=none", "advantage_std=group"),
    "astrolabe over the batch": ("kl.mode=none", "advantage_std=batch"),
    "astrolabe, long tuning": ("kl.mode=none", "advantage_std=group", "clip.chunks=1", "clip.score=clip"),
    "diffusion_nft": ("kl_weight=0", "advantage_std=group"),
}
ALL = {**WEIGHTED, "ar_copo": (), "flow_grpo": ()}


class Given:
    name = "given"

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values)

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"given": self.values}


def collected(name: str, folder: Path, values: list[float]) -> tuple[Any, Any, Any]:
    kind = name.replace(",", " ").split()[0]
    objective, ctx = make(folder, kind, *[f"objective.{o}" for o in ALL[name]])
    ctx.rewards = CompositeReward({"given": Given(values)}, {"given": 1.0})
    return objective, ctx, collect(objective, ctx)


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_loss_is_that_of_the_groups_with_signal(name: str, folder: Path) -> None:
    objective, ctx, data = collected(name, folder, SIGNAL + NOISE)
    assert data["signal"].tolist() == [2.0] * GROUP + [0.0] * GROUP
    assert data.metrics["health/low_spread_groups/mean"] == 0.5
    alone = data.candidates(0, GROUP)
    alone = replace(alone, tensors={**alone.tensors, "signal": torch.ones(GROUP)})
    found, expected = (whole(objective, ctx, part).loss for part in (data, alone))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-9) and float(expected.detach()) > 0


@pytest.mark.parametrize("name", ALL)
def test_noise_has_no_gradient(name: str, folder: Path) -> None:
    """The other way round, noise in the second group changes nothing; signal there does."""
    gradients = []
    for second in (NOISE, NOISE[::-1], SIGNAL):
        objective, ctx, data = collected(name, folder, SIGNAL + second)
        gradients.append(accumulate(objective, ctx, data, Phase(), 64)[1])
    first, reversed_, signal = gradients
    assert all(torch.equal(first[key], reversed_[key]) for key in first)
    assert any((first[key] - signal[key]).abs().max() > 1e-9 for key in first)
