"""Attention processors that put causality into a stock diffusers `WanTransformer3DModel`.

The network is called with frames folded into the batch, `[N * F, C, 1, H, W]` with one timestep per row. Modulation and
norms then broadcast per frame for free, and the stock forward stays untouched. Self-attention unfolds to
`[N, F * tokens]`, reads the `AttentionPlan` and prepends the frozen context. The plan arrives in the place of the
rotary embedding (gradient checkpointing saves it with the other arguments). Cross-attention folds back to the text's
batch, so one set of text keys serves a whole group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel
from torch import Tensor, nn

from vidalign.errors import UserError, first_line
from vidalign.students.video.blocks import Ask, BlockPlan, CausalBlock, Past, TextKeys
from vidalign.students.video.context import widen
from vidalign.students.video.numerics import original_rms, round_as_original
from vidalign.students.video.plan import AttentionPlan
from vidalign.students.video.rope import rotate

Norm = Callable[[nn.Module, Tensor], Tensor]
Parts = Sequence[Tensor]


class Runtime:
    """What the patched parts of one network share during a forward."""

    plan: AttentionPlan | None = None
    text: dict[int, tuple[Tensor, Tensor]] | None = None
    """Cross-attention keys and values per layer, kept while a rollout needs it; None = recompute."""


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

    def __init__(self, rms: Norm) -> None:
        self.rms = rms

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: BlockPlan,
    ) -> Tensor:
        plan = rotary_emb
        split = (attn.heads, -1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = self.rms(attn.norm_q, query), self.rms(attn.norm_k, key)
        query, key, value = (x.reshape(plan.batch, -1, x.shape[-1]).unflatten(2, split) for x in (query, key, value))
        if plan.collected is not None:
            plan.collected.append((key.type_as(value), value))
        if plan.rotary is not None:
            query, key = rotate(query, plan.rotary), rotate(key, plan.rotary)
        parts = [x.split(plan.sizes, 1) for x in (query, key, value)]
        outs = [self._asked(ask, *parts) for ask in plan.asks]
        out = _joined([outs[n] for n in plan.order], 1).flatten(2)
        out = out.reshape(hidden_states.shape[0], -1, out.shape[-1])
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected

    def _asked(self, ask: Ask, queries: Parts, keys: Parts, values: Parts) -> Tensor:
        """What the queries of a segment read.

        The sequence is cut once and joined again, not sliced per segment: the backward pass of every slice of a tensor
        would fill and add a full-size gradient (a quarter of a training step at the world's size).
        """
        query = _joined([queries[n] for n in ask.query], 1)
        key, value = (_joined([x[n] for n in ask.sequence], 1) for x in (keys, values))
        outs = []
        for q, k, v in _behind(ask.past, query, key, value):
            if ask.factors is not None:
                q, k = rotate(q, ask.factors[-q.shape[1] :]), rotate(k, ask.factors)
            outs.append(attention(q, k, v, self))
        return _joined(outs)


def _behind(past: Past | None, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries of a segment with everything that they attend, in slices of rows.

    A past that candidates share is joined to the keys of each of them, which copies it: no more than `COPY_BYTES` at a
    time.
    """
    if past is None:
        yield query, key, value
        return
    keys, values = _joined(past.keys, 1), _joined(past.values, 1)
    group = len(query) // len(keys)
    for start, stop in past.rows:
        shared, own = slice(start // group, -(-stop // group)), slice(start, stop)
        k, v = (
            torch.cat([widen(x[shared].type_as(y), stop - start), y[own]], 1) for x, y in ((keys, key), (values, value))
        )
        yield query[own], k, v


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The parts along a dimension; one part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """RMS norm in the dtype of its weight: under autocast the fp32 weight keeps the fused kernel usable."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    normed: Tensor = norm(x.to(weight.dtype))
    return normed


def attention(query: Tensor, key: Tensor, value: Tensor, processor: Any) -> Tensor:
    """`[N, S, heads, dim]` attention in the dtype of `value`; in fp32 on a CPU. Its bf16 flash backward is 4-10 times
    slower than the fp32 one (23 against 6 ms for 48 x 192 tokens, 128 heads)."""
    dtype, on_cpu = value.dtype, value.device.type == "cpu"
    inner = torch.promote_types(dtype, torch.float32) if on_cpu else dtype
    with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
        out: Tensor = dispatch_attention_fn(
            query.to(inner),
            key.to(inner),
            value.to(inner),
            backend=processor._attention_backend,
            parallel_config=processor._parallel_config,
        )
    return out.to(dtype)


class CrossAttentionProcessor:
    """Text attention; rows that share a text are folded into one query sequence."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, rms: Norm) -> None:
        self.rms = rms

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | TextKeys,
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        text = encoder_hidden_states
        key, value = text if isinstance(text, tuple) else self.keys(attn, text)
        query = self.rms(attn.norm_q, attn.to_q(hidden_states))
        query = query.reshape(len(key), -1, query.shape[-1]).unflatten(2, (attn.heads, -1))
        out = attention(query, key, value, self).flatten(2)
        out = out.reshape(hidden_states.shape[0], -1, out.shape[-1])
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected

    def keys(self, attn: WanAttention, text: Tensor) -> TextKeys:
        """Keys and values of texts ``[P, L, D]``."""
        value = attn.to_v(text)
        key = self.rms(attn.norm_k, attn.to_k(text)).type_as(value)
        split = (attn.heads, -1)
        return key.unflatten(2, split), value.unflatten(2, split)


def install(transformer: WanTransformer3DModel, numerics: str) -> None:
    """Put the processors and the plan carrier into a stock network; its parameters stay as they are."""
    if transformer.config.added_kv_proj_dim is not None:
        raise NotImplementedError("image-conditioned Wan networks (added_kv_proj_dim) are not supported")
    runtime, rms = Runtime(), original_rms if numerics == "wan" else normed
    for layer, block in enumerate(transformer.blocks):
        block.__class__, block.layer = CausalBlock, layer
        block.attn1.set_processor(SelfAttentionProcessor(rms))
        block.attn2.set_processor(CrossAttentionProcessor(rms))
    transformer.rope = PlanCarrier(runtime)
    if numerics == "wan":
        round_as_original(transformer)


def use_attention(transformer: WanTransformer3DModel, backend: str, where: str) -> None:
    """Compute attention with the kernels of `backend`: ``native``, ``cudnn``, ``flash``, ``flash_3``, ``sage`` or
    ``flex``. Raises `UserError`, which names `where` they were asked for, where they are not installed."""
    try:
        transformer.set_attention_backend({"cudnn": "_native_cudnn", "flash_3": "_flash_3"}.get(backend, backend))
    except (RuntimeError, ImportError, ValueError, OSError) as error:
        raise UserError(
            f"the attention kernels {backend!r} cannot be used",
            where=where,
            why=first_line(error),
            fix="install their package, or use auto",
        ) from error
