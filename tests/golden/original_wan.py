"""The original causal Wan network in bf16, written out operation by operation, with the roundings of the released code.

Slow and plain: weights under their original names, one prompt, a list of roped keys and values as cache. It shares
nothing with the student but torch's own operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

DTYPE = torch.bfloat16


class OriginalWan:
    """weights: by their original names, without the prefix `model.`; config: of the diffusers network."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.w = {name: value.to(DTYPE) for name, value in weights.items()}
        self.heads, self.head_dim = config["num_attention_heads"], config["attention_head_dim"]
        self.layers, self.freq, self.eps = config["num_layers"], config["freq_dim"], config.get("eps", 1e-6)
        self.patch = config["patch_size"]
        self.cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(self.layers)]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def rms(self, x: Tensor, name: str) -> Tensor:
        """WanRMSNorm: rounded before the weight."""
        wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return wide.type_as(x) * self.w[f"{name}.weight"]

    def layer_norm(self, x: Tensor, name: str = "") -> Tensor:
        """WanLayerNorm: a result in bf16."""
        weight, bias = (self.w.get(f"{name}.{part}") for part in ("weight", "bias"))
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def rope(self, x: Tensor, start: int, grid: tuple[int, int, int]) -> Tensor:
        """Pairs of channels as complex128 numbers, turned by frame, row and column."""
        frames, rows, columns = grid
        third = 2 * (self.head_dim // 6)
        axes = (self.head_dim - 2 * third, third, third)
        places = [(start + f, r, c) for f in range(frames) for r in range(rows) for c in range(columns)]
        angles = torch.cat(
            [
                torch.outer(
                    torch.tensor([place[n] for place in places], dtype=torch.float64),
                    10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size),
                )
                for n, size in enumerate(axes)
            ],
            1,
        )
        turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)

    def attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Accumulated in fp32, as the flash kernels do, and rounded at the end."""
        q, k, v = (x.float().transpose(1, 2) for x in (query, key, value))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).to(DTYPE).flatten(2)

    def forward(self, x: Tensor, t: float, text: Tensor, start: int, *, clean: bool) -> Tensor:
        """Velocity of one chunk ``[1, F, C, H, W]`` at timestep t; a clean pass appends to the cache."""
        frames, _, height, width = x.shape[1:]
        grid = (frames, height // self.patch[1], width // self.patch[2])
        x = functional.conv3d(
            x.transpose(1, 2), self.w["patch_embedding.weight"], self.w["patch_embedding.bias"], stride=self.patch
        )
        x = x.flatten(2).transpose(1, 2).contiguous()
        half = self.freq // 2
        angles = torch.outer(
            torch.full((frames,), t).double(), torch.pow(10000, -torch.arange(half, dtype=torch.float64) / half)
        )
        features = torch.cat([angles.cos(), angles.sin()], 1).to(DTYPE)
        e = self.linear(functional.silu(self.linear(features, "time_embedding.0")), "time_embedding.2")
        e0 = self.linear(functional.silu(e), "time_projection.1").unflatten(1, (6, -1))[None]
        text = self.linear(
            functional.gelu(self.linear(text, "text_embedding.0"), approximate="tanh"), "text_embedding.2"
        )
        for layer in range(self.layers):
            x = self.block(layer, x, e0, text, start, grid, clean=clean)
        shift, scale = (self.w["head.modulation"].unsqueeze(1) + e[None].unsqueeze(2)).chunk(2, dim=2)
        x = self.layer_norm(x).unflatten(1, (frames, -1)) * (1 + scale) + shift
        x = self.linear(x.flatten(1, 2), "head.head")
        x = x.view(1, *grid, *self.patch, -1).permute(0, 1, 7, 4, 2, 5, 3, 6)
        return x.reshape(1, frames, -1, height, width)

    def block(
        self, layer: int, x: Tensor, e0: Tensor, text: Tensor, start: int, grid: tuple[int, int, int], *, clean: bool
    ) -> Tensor:
        name, frames = f"blocks.{layer}", grid[0]
        e = (self.w[f"{name}.modulation"].unsqueeze(1) + e0).chunk(6, dim=2)
        y = (self.layer_norm(x).unflatten(1, (frames, -1)) * (1 + e[1]) + e[0]).flatten(1, 2)
        y = self.self_attention(layer, y, start, grid, clean=clean)
        x = x + (y.unflatten(1, (frames, -1)) * e[2]).flatten(1, 2)
        crossed = self.layer_norm(x, f"{name}.norm3") if f"{name}.norm3.weight" in self.w else x
        x = x + self.cross_attention(f"{name}.cross_attn", crossed, text)
        y = (self.layer_norm(x).unflatten(1, (frames, -1)) * (1 + e[4]) + e[3]).flatten(1, 2)
        y = self.linear(functional.gelu(self.linear(y, f"{name}.ffn.0"), approximate="tanh"), f"{name}.ffn.2")
        return x + (y.unflatten(1, (frames, -1)) * e[5]).flatten(1, 2)

    def self_attention(self, layer: int, x: Tensor, start: int, grid: tuple[int, int, int], *, clean: bool) -> Tensor:
        name = f"blocks.{layer}.self_attn"
        q = self.rms(self.linear(x, f"{name}.q"), f"{name}.norm_q").unflatten(2, (self.heads, -1))
        k = self.rms(self.linear(x, f"{name}.k"), f"{name}.norm_k").unflatten(2, (self.heads, -1))
        v = self.linear(x, f"{name}.v").unflatten(2, (self.heads, -1))
        q, k = self.rope(q, start, grid), self.rope(k, start, grid)
        past = self.cache[layer]
        keys, values = torch.cat([*(p[0] for p in past), k], 1), torch.cat([*(p[1] for p in past), v], 1)
        if clean:
            past.append((k, v))
        return self.linear(self.attention(q, keys, values), f"{name}.o")

    def cross_attention(self, name: str, x: Tensor, text: Tensor) -> Tensor:
        q = self.rms(self.linear(x, f"{name}.q"), f"{name}.norm_q").unflatten(2, (self.heads, -1))
        k = self.rms(self.linear(text, f"{name}.k"), f"{name}.norm_k").unflatten(2, (self.heads, -1))
        v = self.linear(text, f"{name}.v").unflatten(2, (self.heads, -1))
        return self.linear(self.attention(q, k, v), f"{name}.o")

    def sample(self, noise: Tensor, renoise: Tensor, text: Tensor, sigmas: list[float], chunk: int) -> Tensor:
        """The few-step sampler: x0 in float64, everything between steps rounded to bf16."""
        out = []
        for start in range(0, noise.shape[1], chunk):
            frames = slice(start, start + chunk)
            x = noise[:, frames]
            for step, sigma in enumerate(sigmas):
                v = self.forward(x, 1000 * sigma, text, start, clean=False)
                x0 = (x.double() - sigma * v.double()).to(DTYPE)
                if step + 1 < len(sigmas):
                    level = torch.tensor([sigmas[step + 1]], dtype=torch.float32)
                    x = ((1 - level) * x0 + level * renoise[:, step, frames]).to(DTYPE)
            self.forward(x0, 0.0, text, start, clean=True)
            out.append(x0)
        return torch.cat(out, 1)
