"""The reward that `vidalign serve` runs, from the registry or from a class that is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vidalign import registry
from vidalign.errors import UsageError
from vidalign.recipe.plugins import make
from vidalign.rewards.base import TrainableReward
from vidalign.serving.loading import Served, load


def loader(reward: str, settings: Mapping[str, Any], device: str) -> Callable[[], Served]:
    """What makes the reward: a name in the registry, ``file.py:Class`` or ``module:Class``.

    Raises `UserError` for a name that does not exist and for rewards that cannot be served.
    """
    if ":" in reward:
        return lambda: load(reward, settings, device)
    kind = registry.get("rewards", reward)
    if isinstance(kind, type) and issubclass(kind, TrainableReward):
        raise UsageError(f"the reward {reward!r} cannot be served", why="it learns from the clips of its own run")
    if getattr(kind, "judges", "clips") != "clips":
        raise UsageError(f"the reward {reward!r} cannot be served", why="it judges texts, and clips are sent")
    if not hasattr(kind, "Config"):
        if settings:
            raise UsageError(f"the reward {reward!r} has no settings", where=", ".join(settings))
        return lambda: Served(kind(), device)
    return lambda: Served(make("rewards", reward, settings, reward), device)
