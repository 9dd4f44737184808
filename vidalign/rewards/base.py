"""The contract of a reward, and the weighted set of rewards that a recipe names.

A reward scores finished clips for their prompts; higher is better. An item that it cannot score is NaN, which
objectives leave out; it is never 0. Weights are applied by the objective, which may whiten each component
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from vidalign.errors import PluginError


@runtime_checkable
class Reward(Protocol):
    """What a recipe may name under ``rewards``; a class made without arguments or with its nested
    ``Config``."""

    name: str

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Score clips ``[B, F, 3, H, W]`` in [0, 1] for B prompts.

        Returns ``[B]`` under the reward's own name, NaN where an item failed; further names are for logs.
        """
        ...


class CompositeReward:
    """Several rewards with a weight each."""

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        assert rewards and set(rewards) == set(weights), "every reward needs a weight"
        self.rewards = dict(rewards)
        self.weights = dict(weights)

    @torch.no_grad()
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The ``[B]`` score of every reward by its name, not weighted.

        clips: ``[B, F, 3, H, W]`` in [0, 1]. Raises `PluginError` when a reward does not keep its contract.
        """
        out = {}
        for name, reward in self.rewards.items():
            values = reward.score(clips, prompts).get(name)
            if values is None or tuple(values.shape) != (len(prompts),):
                found = "nothing" if values is None else f"a tensor of shape {tuple(values.shape)}"
                raise PluginError(
                    f"the reward {name!r} returned {found} under its name",
                    where=type(reward).__qualname__,
                    why=f"a reward returns a number for each of {len(prompts)} clips, NaN for a failed one",
                )
            out[name] = values
        return out

    def total(self, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Weighted mean ``[B]`` of scores as `score` returns them; NaN where any component is."""
        parts = torch.stack([self.weights[name] * scores[name] for name in self.weights])
        return parts.sum(0) / sum(self.weights.values())
