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
from vidalign.students.video.public import rename

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


def inputs(frames: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, clean latents and text features."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, frames, 16, 6, 8)
    return (
        torch.randn(shape, generator=g),
        torch.randn(shape, generator=g),
        torch.randn(batch, 12, 48, generator=g),
    )
