"""A discriminator on tiny networks, and clips for it to judge."""

from __future__ import annotations

from pathlib import Path

import torch
from objective_helpers import make, network_of
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.rewards.base import ScoreRequest
from vidalign.rewards.discriminator import DiscriminatorReward, is_held_out
from vidalign.worlds.video import captions, renderer

SHARE = 0.125
TRAINED = [p for p in captions.prompts("basic/train") if not is_held_out(p, SHARE)]
HELD_OUT = [p for p in captions.prompts("basic/train") if is_held_out(p, SHARE)]
SGD = ("trainer.optimizer=sgd", "trainer.clip=0", "trainer.weight_decay=0", "discriminator.learning_rate=0.1")


def discriminator(folder: Path, *overrides: str, objective: str = "afd") -> tuple[DiscriminatorReward, TrainContext]:
    _, ctx = make(folder, objective, *overrides)
    assert ctx.rewards is not None
    (reward,) = ctx.rewards.trainable
    assert isinstance(reward, DiscriminatorReward)
    return reward, ctx


def weights(ctx: TrainContext, role: str = "discriminator") -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network_of(ctx, role).state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


def student_clips(prompts: list[str], seed: int = 0, frames: int = 9) -> Tensor:
    """Stand-ins for a student: clips of the world with noise."""
    made = renderer.clips(prompts, frames, generator=torch.Generator().manual_seed(seed))
    return (made + 0.3 * torch.rand(made.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def asked(clips: Tensor, prompts: list[str]) -> ScoreRequest:
    """A group for each run of equal prompts."""
    distinct = list(dict.fromkeys(prompts))
    return ScoreRequest(clips, distinct, torch.tensor([distinct.index(p) for p in prompts]))


def rounded(clips: Tensor) -> Tensor:
    """As a stored clip."""
    return (clips * 255).round() / 255
