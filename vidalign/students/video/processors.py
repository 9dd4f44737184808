"""Attention processors that put causality into a stock diffusers `WanTransformer3DModel`.

The network is called with frames folded into the batch, `[N * F, C, 1, H, W]` with one timestep per row: modulation and
norms then broadcast per frame for free, and the stock forward stays untouched. Self-attention unfolds to
`[N, F * tokens]`, reads the `AttentionPlan` that arrives in the place of the rotary embedding (gradient checkpointing
saves it with the other arguments) and prepends the frozen context. Cross-attention folds back to the text's batch, so
one set of text keys serves a whole group.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel
from torch import Tensor, nn

from vidalign.students.video.context import Context
from vidalign.students.video.plan import AttentionPlan, Segment
from vidalign.students.video.rope import rotate


class Runtime:
    """What the patched parts of one network share during a forward."""

    plan: AttentionPlan | None = None
    text: dict[int, tuple[Tensor, Tensor]] | None = None
    """Cross-attention keys and values per layer, kept while a rollout asks for it; None = recompute."""


class PlanCarrier(nn.Module):
    """Stands where the rotary embedding stood and hands the current plan to every block."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def forward(self, hidden_states: Tensor) -> AttentionPlan:
        plan = self.runtime.plan
        assert plan is not None, "the transformer must be called through VideoStudent, which sets the plan"
        return plan


class SelfAttentionProcessor:
    """Full attention inside the segments of the plan."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self, attn: WanAttention, hidden_states: Tensor, encoder_hidden_states: None, attention_mask: None,
        rotary_emb: AttentionPlan,
    ) -> Tensor:
        plan = rotary_emb
        split = (attn.heads, -1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = attn.norm_q(query).type_as(value), attn.norm_k(key).type_as(value)
        query, key, value = (x.reshape(plan.batch, -1, x.shape[-1]).unflatten(2, split) for x in (query, key, value))
        if plan.collected is not None:
            plan.collected.append((key, value))
        attend = self._relative if plan.layout.relative else self._absolute
        out = attend(plan, query, key, value).flatten(2)
        out = out.reshape(hidden_states.shape[0], -1, out.shape[-1])
        return attn.to_out[1](attn.to_out[0](out))

    def _absolute(self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = rotate(query, plan.rotary), rotate(key, plan.rotary)
        past = self._context(plan, key)
        outs = [
            self._attend(
                take(query, (segment.query,), plan.tokens),
                gather(segment, past and past[0], key, plan.tokens),
                gather(segment, past and past[1], value, plan.tokens),
            )
            for segment in plan.layout.segments
        ]
        return _in_order(plan, outs)

    def _relative(self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        past = self._context(plan, key)
        outs = []
        for segment in plan.layout.segments:
            keys = gather(segment, past and past[0], key, plan.tokens)
            values = gather(segment, past and past[1], value, plan.tokens)
            own = segment.query[1] - segment.query[0]
            positions = tuple(range(segment.key_frames))
            factors = plan.tables.factors(positions, plan.grid, key.device)
            queries = take(query, (segment.query,), plan.tokens)
            queries = rotate(queries, factors[-own * plan.tokens :])
            outs.append(self._attend(queries, rotate(keys, factors), values))
        return _in_order(plan, outs)

    def _context(self, plan: AttentionPlan, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """The context's keys and values for this layer at full batch; keys roped when positions are absolute."""
        if plan.context is None or not plan.context.pieces:
            return None
        if self.layer not in plan.read:
            plan.read[self.layer] = self._read(plan, plan.context, like)
        return plan.read[self.layer]

    def _read(self, plan: AttentionPlan, context: Context, like: Tensor) -> tuple[Tensor, Tensor]:
        def full(x: Tensor) -> Tensor:
            return x.to(like).repeat_interleave(plan.batch // x.shape[0], 0) if x.shape[0] != plan.batch else x.to(like)

        keys = torch.cat([full(p.keys[self.layer]) for p in context.pieces], 1).detach()
        values = torch.cat([full(p.values[self.layer]) for p in context.pieces], 1).detach()
        if not plan.layout.relative:
            keys = rotate(keys, plan.tables.factors(plan.layout.context_positions, plan.grid, keys.device))
        return keys, values

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )


def take(x: Tensor, spans: tuple[tuple[int, int], ...], tokens: int) -> Tensor:
    """Frames of `[N, frames * tokens, ...]` as one tensor; a view when there is one span."""
    parts = [x[:, a * tokens : b * tokens] for a, b in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def gather(segment: Segment, past: Tensor | None, x: Tensor, tokens: int) -> Tensor:
    """Context slots, then frames of the sequence, that `segment` attends."""
    parts = [past[:, a * tokens : b * tokens] for a, b in segment.context] if past is not None else []
    parts += [x[:, a * tokens : b * tokens] for a, b in segment.sequence]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _in_order(plan: AttentionPlan, outs: list[Tensor]) -> Tensor:
    if len(outs) == 1:
        return outs[0]
    order = sorted(range(len(outs)), key=lambda i: plan.layout.segments[i].query)
    return torch.cat([outs[i] for i in order], 1)


class CrossAttentionProcessor:
    """Text attention; rows that share a text are folded into one query sequence."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, layer: int, runtime: Runtime) -> None:
        self.layer = layer
        self.runtime = runtime

    def __call__(
        self, attn: WanAttention, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: None = None, rotary_emb: None = None,
    ) -> Tensor:
        split = (attn.heads, -1)
        key, value = self._text(attn, encoder_hidden_states)
        query = attn.norm_q(attn.to_q(hidden_states)).type_as(value)
        query = query.reshape(encoder_hidden_states.shape[0], -1, query.shape[-1]).unflatten(2, split)
        out = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        out = out.flatten(2).reshape(hidden_states.shape[0], -1, query.shape[2] * query.shape[3])
        return attn.to_out[1](attn.to_out[0](out))

    def _text(self, attn: WanAttention, text: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.runtime.text
        if kept is not None and self.layer in kept:
            return kept[self.layer]
        value = attn.to_v(text)
        key = attn.norm_k(attn.to_k(text)).type_as(value)
        key, value = (x.unflatten(2, (attn.heads, -1)) for x in (key, value))
        if kept is not None:
            kept[self.layer] = (key, value)
        return key, value


class Sinusoid64(nn.Module):
    """Timestep features in float64, as the original Wan computes them; `[n] -> [n, channels]` fp32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.channels // 2
        powers = -torch.arange(half, dtype=torch.float64, device=timestep.device) / half
        angles = torch.outer(timestep.double(), torch.pow(10000, powers))
        return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def install(transformer: WanTransformer3DModel, numerics: str) -> Runtime:
    """Put the processors and the plan carrier into a stock network; its parameters stay as they are."""
    if transformer.config.added_kv_proj_dim is not None:
        raise NotImplementedError("image-conditioned Wan networks (added_kv_proj_dim) are not supported")
    runtime = Runtime()
    for layer, block in enumerate(transformer.blocks):
        block.attn1.set_processor(SelfAttentionProcessor(layer))
        block.attn2.set_processor(CrossAttentionProcessor(layer, runtime))
    transformer.rope = PlanCarrier(runtime)
    if numerics == "wan":
        transformer.condition_embedder.timesteps_proj = Sinusoid64(transformer.config.freq_dim)
    return runtime
