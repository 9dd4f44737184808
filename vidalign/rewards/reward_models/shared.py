"""One copy of a reward model for all that judge by it in one process, and how clips go through it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidalign.engine import distributed
from vidalign.rewards.reward_models.config import ModelConfig
from vidalign.rewards.reward_models.network import RewardNetwork
from vidalign.rewards.reward_models.reader import Reader


@dataclass(eq=False)
class Loaded:
    """A network with its weights, and what makes its batches."""

    network: RewardNetwork
    reader: Reader
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation of each output, where the files give them."""
    kept: dict[bool, tuple[Any, Any, Any]] = field(default_factory=dict)
    """Of the last clips in grey and in colour: a weak reference, what they were judged for, and the outputs."""


_MODELS: weakref.WeakValueDictionary[Hashable, Loaded] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def shared(kind: str, config: ModelConfig, load: Callable[[], Loaded]) -> Loaded:
    """The model of these files in this precision at this place; it is loaded unless somebody holds it already."""
    key = (kind, config.path, config.revision, config.backbone, config.dtype, str(place_of(config)))
    with _LOCK:
        model = _MODELS.get(key)
        if model is None:
            model = _MODELS[key] = load()
    return model


def place_of(config: ModelConfig) -> torch.device:
    """The device that the settings name, or that of this process."""
    return torch.device(config.device) if config.device else distributed.device()


def dtype_of(config: ModelConfig) -> torch.dtype:
    """What the backbone computes in."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def finite(clips: Tensor) -> Tensor:
    """``[B]``: which clips have finite values only."""
    return clips.isfinite().flatten(1).all(1)
