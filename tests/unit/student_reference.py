"""An independent causal forward for the tests: stock diffusers attention with one dense mask over all tokens.

It shares nothing with the student but the weights: per-token timesteps, stock rotary embedding, a boolean
mask written from the words "chunk i attends chunk j if ...".
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from safetensors import safe_open
from torch import Tensor

from vidalign.students.video import CachePolicy, Sampler, VideoStudent, VideoStudentSpec
from vidalign.students.video.importers.names import rename

FIXTURE = Path(__file__).parents[1] / "fixtures" / "self_forcing_tiny.safetensors"
TOKENS = 12  # of a 6 x 8 latent frame in 2 x 2 patches


def weights() -> tuple[dict[str, Tensor], dict]:
    """The 3-layer network of the fixture, under diffusers names, and its config."""
    with safe_open(FIXTURE, "pt") as file:
        keys = [k for k in file.keys() if k.startswith("sf_state_dict/")]
        tensors = {rename(k.removeprefix("sf_state_dict/")): file.get_tensor(k) for k in keys}
        return tensors, json.loads(file.metadata()["config"])


def student(policy: CachePolicy | None = None, **kwargs: object) -> VideoStudent:
    """A student with the fixture's weights: latents [B, F, 16, 6, 8], text [B, L, 48]."""
    tensors, config = weights()
    spec = VideoStudentSpec(
        transformer=config,
        cache=policy or CachePolicy(),
        sampler=Sampler(timesteps=[1000, 750, 500, 250], shift=5.0),
        codec={"name": "wan"},
        height=48,
        width=64,
        **kwargs,  # type: ignore[arg-type]
    )
    made = VideoStudent.from_spec(spec)
    made.base.load_state_dict(tensors)
    return made


class MaskedProcessor(WanAttnProcessor):
    """Stock attention with a fixed mask for self-attention."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):  # type: ignore[no-untyped-def]
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.mask, rotary_emb)


def attended(policy: CachePolicy, query: int, key: int) -> bool:
    """May frame `query` attend frame `key`? Window counts sink + local + current; eviction spares the
    sink.
    """
    chunk = query // policy.chunk_frames
    last = (chunk + 1) * policy.chunk_frames
    if key >= last:
        return False
    if key // policy.chunk_frames == chunk or not policy.window or last <= policy.window:
        return True
    return key < policy.sink or key >= last - (policy.window - policy.sink)


@torch.no_grad()
def masked_forward(policy: CachePolicy, latents: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """Velocity of all frames `[B, F, 16, 6, 8]` at `sigma` `[B, F]` with one dense block-causal mask."""
    tensors, config = weights()
    network = WanTransformer3DModel(**config)
    network.load_state_dict(tensors)
    frames = range(latents.shape[1])
    mask = torch.tensor([[attended(policy, q, k) for k in frames] for q in frames])
    mask = mask.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)
    for block in network.blocks:
        block.attn1.set_processor(MaskedProcessor(mask))
    timestep = (1000 * sigma).repeat_interleave(TOKENS, 1)
    out = network(latents.transpose(1, 2), timestep, text, return_dict=False)[0]
    return out.transpose(1, 2)


class TwinProcessor(WanAttnProcessor):
    """Dense self-attention over `past` `[1, tokens, heads, dim]` un-roped keys and values, then the call's
    own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.past: list[tuple[Tensor, Tensor]] = []
        self.positions: list[int] = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):  # type: ignore[no-untyped-def]
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(hidden_states)))
        self.own = key, value
        keys = torch.cat([*(k for k, _ in self.past), key], 1)
        values = torch.cat([*(v for _, v in self.past), value], 1)
        roped = self.rope(keys, self.positions)
        query = self.rope(query, self.positions[-query.shape[1] // TOKENS :])
        scores = torch.einsum("bqhd,bkhd->bhqk", query, roped) / query.shape[-1] ** 0.5
        out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    @staticmethod
    def rope(x: Tensor, positions: list[int]) -> Tensor:
        """Pairs of channels turned by frame (`positions`), row (3) and column (4), as Wan splits a head."""
        places = [(f, r, c) for f in positions for r in range(3) for c in range(4)]
        third = 2 * (x.shape[-1] // 6)
        angles = torch.cat(
            [
                torch.outer(
                    torch.tensor([place[axis] for place in places], dtype=torch.float64),
                    10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size),
                )
                for axis, size in enumerate((x.shape[-1] - 2 * third, third, third))
            ],
            1,
        )
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = x.double()[..., 0::2], x.double()[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x)


class RecacheTwin:
    """Prompt switches by brute force: a dictionary of every frame's keys and values, none ever dropped, and
    the rule in words.
    """

    def __init__(self, policy: CachePolicy) -> None:
        tensors, config = weights()
        self.policy = policy
        self.network = WanTransformer3DModel(**config)
        self.network.load_state_dict(tensors)
        self.processors = [TwinProcessor() for _ in self.network.blocks]
        for block, processor in zip(self.network.blocks, self.processors, strict=True):
            block.attn1.set_processor(processor)
        self.stored: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.sink = list(range(policy.sink))

    def chunk(self, latents: Tensor, sigma: float, text: Tensor, start: int, keep: bool = False) -> Tensor:
        """Velocity of a chunk `[1, 3, 16, 6, 8]` that attends the sink and the newest frames of its window."""
        past = [f for f in sorted(self.stored) if f >= self.sink[0]]
        room = self.policy.window - latents.shape[1]
        if len(past) > room:
            past = self.sink + past[-(room - len(self.sink)) :]
        return self._forward(latents, sigma, text, start, past, keep)

    def recache(self, latents: Tensor, text: Tensor) -> None:
        """All latents so far `[1, n, 16, 6, 8]` under a new `text`."""
        n, policy = latents.shape[1], self.policy
        start = max(0, n - policy.window)
        old_sink = policy.global_sink and n >= policy.window
        if old_sink:
            start += policy.sink
        else:
            self.sink = list(range(start, start + policy.sink))
        self._forward(latents[:, start:], 0.0, text, start, self.sink if old_sink else [], True)

    def _forward(self, latents: Tensor, sigma: float, text: Tensor, start: int, past: list[int], keep: bool) -> Tensor:
        own = list(range(start, start + latents.shape[1]))
        frames = past + own
        for layer, processor in enumerate(self.processors):
            processor.past = [self.stored[f][layer] for f in past]
            processor.positions = frames if self.policy.rope == "absolute" else list(range(len(frames)))
        timestep = torch.full((1,), 1000 * sigma)
        out = self.network(latents.transpose(1, 2), timestep, text, return_dict=False)[0].transpose(1, 2)
        if keep:
            for i, f in enumerate(own):
                rows = slice(i * TOKENS, (i + 1) * TOKENS)
                self.stored[f] = [(p.own[0][:, rows], p.own[1][:, rows]) for p in self.processors]
        return out


def inputs(frames: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, clean latents and text features."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, frames, 16, 6, 8)
    return (
        torch.randn(shape, generator=g),
        torch.randn(shape, generator=g),
        torch.randn(batch, 12, 48, generator=g),
    )
