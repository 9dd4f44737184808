"""Qwen2-VL with a head that is read at special tokens (VideoReward, arXiv 2501.13918; HPSv3, arXiv 2508.03789).

The published models were trained under transformers 4.45 by a forward pass that gave the language model embeddings and
no positions. So visual tokens count on like those of the text: the positions of Qwen2-VL for height and width are not
used. That pass is repeated here; the one of transformers itself would give other scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Batch:
    """B prompts with what they show."""

    tokens: Tensor
    """``[B, L]``, padded on the right."""
    mask: Tensor
    """``[B, L]``, 0 on padding."""
    patches: Tensor
    """``[P, C T H W]``: the pixels of the patches of all clips or pictures, normalised."""
    grid: Tensor
    """``[B, 3]``: patches in time, height and width; on the CPU, since lengths are read off it."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.tokens.to(device), self.mask.to(device), self.patches.to(device), self.grid)


class RewardNetwork(nn.Module):
    """Outputs of a head at special tokens. The head computes in fp32 or its wider type."""

    def __init__(self, backbone: Any, head: nn.Module, visual_token: int, reward_tokens: Sequence[int]) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.visual_token, self.reward_tokens = visual_token, list(reward_tokens)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.head.parameters()).device
        return device

    def forward(self, batch: Batch) -> Tensor:
        """``[B, T, K]``: the K outputs of the head at each of the T special tokens, in their order."""
        embeddings = self.backbone.get_input_embeddings()(batch.tokens)
        seen = self._seen(batch)
        shown = (batch.tokens == self.visual_token).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(shown.expand_as(embeddings), seen.to(embeddings))
        positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        hidden = self.backbone.language_model(
            inputs_embeds=embeddings,
            attention_mask=batch.mask,
            position_ids=positions.view(1, 1, -1).expand(3, len(batch.tokens), -1),
            use_cache=False,
        ).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        places = [(batch.tokens == token).int().argmax(1) for token in self.reward_tokens]
        read = torch.stack([hidden[rows, place] for place in places], 1)
        weight = next(self.head.parameters())
        with torch.autocast(read.device.type, enabled=False):
            outputs: Tensor = self.head(read.to(weight.dtype))
            return outputs

    def _seen(self, batch: Batch) -> Tensor:
        """What the vision tower says of every visual token ``[V, D]``."""
        from transformers.vision_utils import get_vision_position_ids

        eyes = self.backbone.visual
        places = get_vision_position_ids(batch.grid, eyes.spatial_merge_size).to(batch.patches.device)
        seen: Tensor = eyes(batch.patches.to(eyes.dtype), grid_thw=batch.grid, position_ids=places).pooler_output
        return seen


def preference_head(width: int) -> nn.Module:
    """The head of HPSv3: mu and log sigma of the preference. Dropout is in its numbering and does nothing here."""
    layers = (nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2))
    return nn.Sequential(*layers)


def linear_head(width: int) -> nn.Module:
    """The head of VideoReward: one number a token, without bias."""
    return nn.Linear(width, 1, bias=False)
