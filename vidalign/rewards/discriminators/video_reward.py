"""VideoReward as a discriminator (AFD, arXiv 2605.26105): its LoRA on Qwen2-VL-2B and its `rm_head` are trained on.

The published folder is read by the loader of the reward `video_align`. The score of a clip is the mean of its visual
quality, motion quality and text alignment, each normalised by the mean and standard deviation of the checkpoint: the
first margins are those of VideoReward, before the discriminator has seen a clip of the student. All three are read in
one pass on coloured frames. What is trained: the factors of every linear layer of the language model, and the one
vector of the head, which all three share. Special tokens, embeddings and the vision tower stay as they are.

The paper does not say how three outputs become one score; the mean is ours.
Knobs that matter: learning_rate (5e-6; 5e-5 kills the signal), fps, which must be that of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vidalign.asked import without_rate
from vidalign.engine.config import AdapterConfig
from vidalign.engine.policies import inject_adapters
from vidalign.errors import CheckpointError
from vidalign.rewards.discriminators.base import Features
from vidalign.rewards.discriminators.kinds import VisionLanguageKind
from vidalign.rewards.discriminators.network import Discriminator
from vidalign.rewards.reward_models import frames
from vidalign.rewards.reward_models.loading import FACTORS, adapted, expected, fill_with_adapter, unloaded
from vidalign.rewards.reward_models.names import compare
from vidalign.rewards.reward_models.network import RewardNetwork, linear_head
from vidalign.rewards.reward_models.video_reward import DIMENSIONS, Published, read_published
from vidalign.rewards.video_align import VideoRewardConfig
from vidalign.students.video import VideoStudentSpec

ADAPTER = "current"


class VideoRewardDiscriminator(Discriminator):
    """LoRA and head of VideoReward, trained on; the mean of its three normalised scores."""

    Config = VisionLanguageKind.Config

    def __init__(self, published: Published, config: VideoRewardConfig, fps: float, seed: int) -> None:
        super().__init__()
        self.network, self.reader = _network(published, seed), published.reader
        self.config, self.fps = config, fps
        self.mean, self.std = ([published.norms[name][n] for name in DIMENSIONS] for n in range(2))

    @classmethod
    def from_recipe(cls, config: Any, spec: VideoStudentSpec, features: Features, seed: int) -> Discriminator:
        """The published network with its adapter; without weights on the meta device, where a step is planned.

        Raises `UserError` for files that are not VideoReward's, and for a student without a frame rate.
        """
        fps = getattr(spec, "fps", None)
        if fps is None:
            raise without_rate("discriminator", "vision_language")
        shown = {name: getattr(config, name) for name in ("path", "backbone", "fps", "min_pixels", "max_pixels")}
        settings = VideoRewardConfig(**shown)
        return cls(read_published(settings), settings, float(fps), seed)

    def forward(self, clips: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        shown = clips[:, frames.by_seconds(clips.shape[1], self.fps, self.config.fps)]
        batch = self.reader.read(shown, prompts, (self.config.min_pixels, self.config.max_pixels))
        outputs = self.network(batch.to(self.network.device)).squeeze(2)  # (B, 3)
        scores: torch.Tensor = ((outputs - outputs.new_tensor(self.mean)) / outputs.new_tensor(self.std)).mean(1)
        return scores


def _network(published: Published, seed: int) -> RewardNetwork:
    """With the published adapter in the place of a new one."""
    lora, weights = published.lora, published.weights
    if lora is None:
        raise CheckpointError("this VideoReward has no LoRA", where=weights.where, why="it is what is trained")
    network = unloaded(published.config, published.reader, linear_head)
    names, layers = expected(network, lora), adapted(network)
    compare(weights.shapes, names, weights.where)
    adapter = AdapterConfig(rank=lora.rank, alpha=lora.scale * lora.rank, targets="language_model.*")
    inject_adapters(network.backbone, [ADAPTER], adapter, seed)
    if torch.get_default_device().type != "meta":
        places = {name: name for name in names}
        for layer in layers:
            places |= {f"{layer}.{kind}": f"{layer}.base_layer.{kind}" for kind in ("weight", "bias")}
            places |= {f"{layer}.{factor}": f"{layer}.{factor}.{ADAPTER}.weight" for factor in FACTORS}
        fill_with_adapter(network, weights, {name: places[name] for name in names})
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("head."))
    return network
