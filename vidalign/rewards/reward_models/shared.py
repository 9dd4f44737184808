"""One copy of a reward model for all that judge by it in one process, and how clips go through it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from vidalign.engine.host_weights import HostWeights
from vidalign.rewards.reward_models.config import ModelConfig
from vidalign.rewards.reward_models.loading import Lora, Weights, fill
from vidalign.rewards.reward_models.network import RewardNetwork
from vidalign.rewards.reward_models.reader import Reader

Norms = dict[str, tuple[float, float]]
"""Mean and standard deviation by output."""


class Loaded:
    """A network with its weights where its settings want them, and what makes its batches."""

    def __init__(
        self,
        network: RewardNetwork,
        reader: Reader,
        weights: Weights,
        config: ModelConfig,
        lora: Lora | None = None,
        norms: Norms | None = None,
    ) -> None:
        rests = config.offload == "cpu"
        fill(network, weights, lora, getattr(torch, config.dtype), torch.device("cpu") if rests else config.place())
        self.network, self.reader, self.norms = network, reader, norms or {}
        self.kept: dict[bool, tuple[Any, Any, Any]] = {}
        """Of the last clips in grey and in colour: a weak reference, what they were judged for, and the outputs."""
        self._weights = HostWeights(network, config.place(), rests=rests)

    def outputs(self, clips: Tensor, prompts: Sequence[str], config: ModelConfig, *, grey: bool = False) -> Tensor:
        """What the head says ``[B, T, K]`` at each special token, in fp32 on the CPU.

        clips: ``[B, F, 3, H, W]`` in [0, 1], the frames that are shown; values that are not finite are 0.
        """
        parts = []
        with self._weights.resident():
            for start in range(0, len(prompts), config.batch):
                part = slice(start, start + config.batch)
                batch = self.reader.read(clips[part].nan_to_num(), prompts[part], config.pixels, grey=grey)
                parts.append(self.network(batch.to(self._weights.device)).float().cpu())
        return torch.cat(parts)


_MODELS: weakref.WeakValueDictionary[Hashable, Loaded] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def shared(kind: str, config: ModelConfig, load: Callable[[], Loaded]) -> Loaded:
    """The model of these files in this precision at this place; it is loaded unless somebody holds it already."""
    where = (str(config.place()), config.offload)
    key = (kind, config.path, config.revision, config.backbone, config.dtype, *where)
    with _LOCK:
        model = _MODELS.get(key)
        if model is None:
            model = _MODELS[key] = load()
    return model
