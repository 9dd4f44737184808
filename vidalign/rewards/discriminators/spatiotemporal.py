"""A small spatio-temporal discriminator for small clips; about 0.24 M parameters at its default width.

Frames and their temporal differences go through three strided convolutions. The resulting cells of all frames, with
sinusoidal (time, row, column) positions, attend each other and the features of the prompt. Then mean pooling and a
bias-free head. Any number of frames; pictures of at least 16x16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vidalign.rewards.discriminators.base import Features
from vidalign.rewards.discriminators.kinds import SpatioTemporalKind
from vidalign.rewards.discriminators.network import Discriminator, full_precision_head
from vidalign.students.video import VideoStudentSpec


class SpatioTemporal(Discriminator):
    """Convolutions over frames and their differences, then attention to all cells and the prompt; 0.24 M parameters."""

    Config = SpatioTemporalKind.Config

    def __init__(self, features: Features, text_dim: int, width: int = 64, layers: int = 2) -> None:
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__()
        self.features, self.width = features, width
        half = width // 2
        self.frames = nn.Sequential(
            nn.Conv2d(6, half, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(half, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 4, 2, 1),
        )
        self.text = nn.Linear(text_dim, width)
        self.layers = nn.ModuleList(
            BasicTransformerBlock(
                width, 4, width // 4, cross_attention_dim=width, activation_fn="gelu", attention_bias=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1, bias=False)

    @classmethod
    def from_recipe(cls, config: Any, spec: VideoStudentSpec, features: Features, seed: int) -> SpatioTemporal:
        text_dim = int(spec.transformer.get("text_dim", 4096))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(features, text_dim, config.width, config.layers)

    def forward(self, clips: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        weight = self.head.weight
        x = (2 * clips - 1).to(weight.device, weight.dtype)
        change = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:] - x[:, :-1]], 1)
        cells = self.frames(torch.cat([x, change], 2).flatten(0, 1))  # [B * F, width, h, w]
        cells = cells.unflatten(0, x.shape[:2]).permute(0, 1, 3, 4, 2)  # [B, F, h, w, width]
        h = (cells + positions(cells.shape[1:4], self.width).to(cells)).flatten(1, 3)
        text = self.text(self.features(list(prompts)).to(weight.device, weight.dtype))  # [B, L, width]
        for layer in self.layers:
            h = layer(h, encoder_hidden_states=text)
        return full_precision_head(self.head, self.norm(h.mean(1)))


def positions(shape: Sequence[int], width: int) -> torch.Tensor:
    """Sinusoidal code ``[F, h, w, width]`` of cells of a grid: half of the channels for time, a quarter each for row
    and column."""
    parts = []
    for axis, (length, channels) in enumerate(zip(shape, (width // 2, width // 4, width // 4), strict=True)):
        rates = torch.exp(-math.log(100.0) * torch.arange(channels // 2) / max(channels // 2 - 1, 1))
        angle = torch.arange(length).unsqueeze(1) * rates
        code = torch.cat([angle.sin(), angle.cos()], 1)
        parts.append(code.reshape([length if a == axis else 1 for a in range(3)] + [channels]).expand(*shape, channels))
    return torch.cat(parts, -1)
