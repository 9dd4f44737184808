"""A small network and engine for the engine tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vidalign.engine.base import build_engine
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.plain import PlainEngine
from vidalign.engine.policies import Policies


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(torch.tanh(self.up(h)))


class Net(nn.Module):
    """`embed`, two `blocks`, `head`; called through `velocity`."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, 3)

    def velocity(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def setup(
    adapter: AdapterConfig | None = None, precision: Any = "fp32", **optimizer: Any
) -> tuple[Net, Policies, PlainEngine]:
    network = net()
    policies = Policies(network, ("old", "reference"), adapter)
    config = OptimizerConfig(**({"optimizer": "sgd", "learning_rate": 0.1, "clip": 0.0} | optimizer))
    engine = build_engine(EngineConfig(precision=precision), config, network, 10, policies)
    assert isinstance(engine, PlainEngine)
    return network, policies, engine


def train(engine: PlainEngine, *batches: Tensor) -> float:
    engine.unfreeze()
    for batch in batches:
        engine.backward(engine.view(own_phase=True).velocity(batch).float().square().mean() / len(batches))
    norm = engine.step()
    engine.freeze()
    return norm
