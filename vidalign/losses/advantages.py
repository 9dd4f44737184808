"""Rewards to advantages to reward weights (Astrolabe, steps 4 and 5; AFD, step 3).

Statistics are taken over the whole gathered batch; a failed reward is NaN and its sample gets advantage 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from copy import copy

import torch


class SignalFloor:
    """Which groups have a reward spread that is signal: at least `share` of the running median of all spreads.

    Dividing by the spread of a group gives noise the size of signal; without a floor, a fork behind which candidates
    hardly differ trains at full strength. The median runs over the groups of the last `STEPS` steps that differ at
    all, those of the present step included, and for each reward by itself: rewards have scales of their own.
    """

    STEPS = 20

    def __init__(self, share: float = 0.1) -> None:
        self.share, self._owner = share, ""
        self._seen: dict[str, list[list[float]]] = {}

    def of(self, label: str) -> SignalFloor:
        """The floor of one objective of several, which see other spreads; its state is part of this one's."""
        own = copy(self)
        own._owner = f"{label}/"
        return own

    def has_signal(self, spread: torch.Tensor, reward: str) -> torch.Tensor:
        """Boolean ``[P]`` of the spreads ``[P]`` of all ranks' groups, which are remembered for `reward`."""
        differing, key = [value for value in spread.tolist() if value > 0], self._owner + reward
        self._seen[key] = [*self._seen.get(key, []), differing][-self.STEPS :]
        seen = [value for step in self._seen[key] for value in step]
        floor = self.share * statistics.median(seen) if seen else 0.0
        return spread > floor

    def state_dict(self) -> dict[str, list[list[float]]]:
        return {name: list(steps) for name, steps in self._seen.items()}

    def load_state_dict(self, state: dict[str, list[list[float]]]) -> None:
        self._seen = {name: list(steps) for name, steps in state.items()}


def whiten(reward: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """``[N]`` to zero mean and unit standard deviation over its finite entries; NaN stays NaN."""
    finite = reward[reward.isfinite()]
    if finite.numel() < 2:
        return torch.where(reward.isfinite(), torch.zeros_like(reward), reward)
    return (reward - finite.mean()) / (finite.std(unbiased=False) + eps)


def group_statistics(reward: torch.Tensor, group_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population std of each group over its finite entries: ``[N], [N] -> [P], [P]``."""
    group_index, zeros = group_index.to(reward.device), reward.new_zeros(int(group_index.max()) + 1)
    finite = reward.isfinite()
    value = torch.where(finite, reward, torch.zeros_like(reward))
    count = zeros.index_add(0, group_index, finite.to(reward.dtype)).clamp(min=1)
    mean = zeros.index_add(0, group_index, value) / count
    spread = torch.where(finite, (reward - mean[group_index]) ** 2, torch.zeros_like(reward))
    std = (zeros.index_add(0, group_index, spread) / count).sqrt()
    return mean, std


def group_advantage(
    reward: torch.Tensor, group_index: torch.Tensor, *, normalise: str = "batch", eps: float = 1e-4
) -> torch.Tensor:
    """``A = R - mean_group(R)``, divided by a std: ``group``, ``batch`` (of R over the whole batch) or ``none``.

    reward, group_index: ``[N]``. The result sums to zero in every group whose rewards are all finite.
    """
    mean, std = group_statistics(reward, group_index)
    advantage = reward - mean[group_index]
    if normalise == "group":
        advantage = advantage / (std[group_index] + eps)
    elif normalise == "batch":
        finite = reward[reward.isfinite()]
        advantage = advantage / ((finite.std(unbiased=False) if finite.numel() else 0.0) + eps)
    else:
        assert normalise == "none", "normalise is checked by the recipe"
    return torch.where(advantage.isfinite(), advantage, torch.zeros_like(advantage))


def reward_weight(advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """``r = clip(A / A_max, -1, 1) / 2 + 1/2`` in [0, 1] (DiffusionNFT, equation 8)."""
    return (advantage / clip).clamp(-1, 1) / 2 + 0.5


def combine(
    components: Mapping[str, torch.Tensor], weights: Mapping[str, float], *, whitened: bool = True
) -> torch.Tensor:
    """Weighted sum of reward components, each ``[N]``; every one whitened first, unless raw sums are asked for.

    A component of weight 0 has no part in it, not even where it is NaN.
    Raw sums let the component with the widest scale decide (the released Astrolabe code does that).
    """
    parts = [
        weights[name] * (whiten(value) if whitened else value)
        for name, value in components.items()
        if weights[name] != 0
    ]
    return torch.stack(parts).sum(0)


def weighted_mean(scores: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """``sum w_i s_i / sum |w_i|`` of scores ``[N]`` by reward: higher is better, also where weights are negative."""
    return combine(scores, weights, whitened=False) / sum(map(abs, weights.values()))
