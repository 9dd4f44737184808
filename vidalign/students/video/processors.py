"""Attention processors that put causality into a stock diffusers `WanTransformer3DModel`.

The network is called with frames folded into the batch, `[N * F, C, 1, H, W]` with one timestep per row. Modulation and
norms then broadcast per frame for free, and the stock forward stays untouched. Self-attention unfolds to
`[N, F * tokens]`, reads the `AttentionPlan` and prepends the frozen context. The plan arrives in the place of the
rotary embedding (gradient checkpointing saves it with the other arguments). Cross-attention folds back to the text's
batch, so one set of text keys serves a whole group.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel
from torch import Tensor, nn

from vidalign.errors import UserError, first_line
from vidalign.students.video.context import Context, widen
from vidalign.students.video.numerics import original_rms, round_as_original
from vidalign.students.video.plan import AttentionPlan, Segment, Span
from vidalign.students.video.rope import rotate

Past = tuple[Tensor, Tensor] | None
Norm = Callable[[nn.Module, Tensor], Tensor]
COPY_BYTES = 2**30
"""Most bytes of a shared past that are copied at once, in one layer."""


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

    def __init__(self, layer: int, rms: Norm) -> None:
        self.layer, self.rms = layer, rms

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: AttentionPlan,
    ) -> Tensor:
        plan = rotary_emb
        split = (attn.heads, -1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = self.rms(attn.norm_q, query), self.rms(attn.norm_k, key)
        query, key, value = (x.reshape(plan.batch, -1, x.shape[-1]).unflatten(2, split) for x in (query, key, value))
        if plan.collected is not None:
            plan.collected.append((key.type_as(value), value))
        attend = self._relative if plan.layout.relative else self._absolute
        out = attend(plan, query, key, value).flatten(2)
        out = out.reshape(hidden_states.shape[0], -1, out.shape[-1])
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected

    def _absolute(self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert plan.rotary is not None, "absolute positions are known before the first layer"
        queries = Frames(rotate(query, plan.rotary), plan)
        keys, values = Frames(rotate(key, plan.rotary), plan), Frames(value, plan)
        past = self._context(plan, value)
        outs = [
            _joined([attention(q, k, v, self) for q, k, v in _behind(plan, segment, queries, keys, values, past)])
            for segment in plan.layout.segments
        ]
        return _in_order(plan, outs)

    def _relative(self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys, values = Frames(query, plan), Frames(key, plan), Frames(value, plan)
        past = self._context(plan, value)
        outs = []
        for segment in plan.layout.segments:
            positions = tuple(range(segment.key_frames))
            factors = plan.tables.factors(positions, plan.grid, key.device)
            rows = _behind(plan, segment, queries, keys, values, past)
            parts = [attention(rotate(q, factors[-q.shape[1] :]), rotate(k, factors), v, self) for q, k, v in rows]
            outs.append(_joined(parts))
        return _in_order(plan, outs)

    def _context(self, plan: AttentionPlan, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """The context's keys and values for this layer, with the rows that its pieces have: one a prompt where the
        candidates of a prompt share their past. Keys are roped when positions are absolute."""
        if plan.context is None or not plan.context.pieces:
            return None
        if self.layer not in plan.read:
            plan.read[self.layer] = self._read(plan, plan.context, like)
        return plan.read[self.layer]

    def _read(self, plan: AttentionPlan, context: Context, like: Tensor) -> tuple[Tensor, Tensor]:
        rows = max(piece.batch for piece in context.pieces)
        keys, values = (
            torch.cat([widen(x.detach().to(like), rows) for x in parts], 1)
            for parts in zip(*((p.keys[self.layer], p.values[self.layer]) for p in context.pieces), strict=True)
        )
        if not plan.layout.relative:
            keys = rotate(keys, plan.tables.factors(plan.layout.context_positions, plan.grid, keys.device))
        return keys, values


def _behind(
    plan: AttentionPlan, segment: Segment, queries: Frames, keys: Frames, values: Frames, past: Past
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries of a segment with everything that they attend, in slices of rows.

    A past that candidates share is joined to the keys of each of them, which copies it: no more than `COPY_BYTES` at a
    time.
    """
    query, key, value = queries.gather(segment.query), keys.gather(*segment.sequence), values.gather(*segment.sequence)
    if past is None or not segment.context:
        yield query, key, value
        return
    past_key, past_value = (_slots(x, segment.context, plan.tokens) for x in past)
    group = len(query) // len(past_key)
    for rows in _slices(len(query), group, past_key[0].nbytes + past_value[0].nbytes):
        shared = slice(rows.start // group, -(-rows.stop // group))
        count = rows.stop - rows.start
        k, v = (
            torch.cat([widen(x[shared].type_as(own), count), own[rows]], 1)
            for x, own in ((past_key, key), (past_value, value))
        )
        yield query[rows], k, v


def _slots(x: Tensor, spans: tuple[Span, ...], tokens: int) -> Tensor:
    """The frames of `x` ``[N, frames * tokens, ...]`` in these spans; a view where they are one run."""
    return _joined([x[:, a * tokens : b * tokens] for a, b in spans], 1)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """The parts along a dimension; one part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _slices(rows: int, group: int, nbytes: int) -> Iterator[slice]:
    """Slices of `rows`, whole groups or equal parts of one, with at most `COPY_BYTES` of `nbytes` a row."""
    fits = max(1, COPY_BYTES // nbytes)
    step = fits // group * group if fits >= group else max(k for k in range(1, fits + 1) if group % k == 0)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class Frames:
    """A sequence `[N, frames * tokens, ...]` cut at the edges of the plan's spans.

    Cut once and joined again, not sliced per segment. The backward pass of every slice of a tensor would fill and add a
    full-size gradient (a quarter of a training step at the world's size).
    """

    def __init__(self, x: Tensor, plan: AttentionPlan) -> None:
        cuts = plan.layout.cuts
        sizes = [(b - a) * plan.tokens for a, b in itertools.pairwise(cuts)]
        self.parts = dict(zip(cuts, x.split(sizes, 1), strict=False))

    def gather(self, *spans: Span) -> Tensor:
        """The frames of `spans`, along the token dimension."""
        return _joined([part for a, b in spans for at, part in self.parts.items() if a <= at < b], 1)


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


def _in_order(plan: AttentionPlan, outs: list[Tensor]) -> Tensor:
    order = sorted(range(len(outs)), key=lambda i: plan.layout.segments[i].query)
    return _joined([outs[i] for i in order], 1)


class CrossAttentionProcessor:
    """Text attention; rows that share a text are folded into one query sequence."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, layer: int, runtime: Runtime, rms: Norm) -> None:
        self.layer, self.runtime, self.rms = layer, runtime, rms

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        split = (attn.heads, -1)
        key, value = self._text(attn, encoder_hidden_states)
        query = self.rms(attn.norm_q, attn.to_q(hidden_states))
        query = query.reshape(encoder_hidden_states.shape[0], -1, query.shape[-1]).unflatten(2, split)
        out = (
            attention(query, key, value, self)
            .flatten(2)
            .reshape(hidden_states.shape[0], -1, query.shape[2] * query.shape[3])
        )
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected

    def _text(self, attn: WanAttention, text: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.runtime.text
        if kept is not None and self.layer in kept:
            return kept[self.layer]
        value = attn.to_v(text)
        key = self.rms(attn.norm_k, attn.to_k(text)).type_as(value)
        key, value = (x.unflatten(2, (attn.heads, -1)) for x in (key, value))
        if kept is not None:
            kept[self.layer] = (key, value)
        return key, value


def install(transformer: WanTransformer3DModel, numerics: str) -> None:
    """Put the processors and the plan carrier into a stock network; its parameters stay as they are."""
    if transformer.config.added_kv_proj_dim is not None:
        raise NotImplementedError("image-conditioned Wan networks (added_kv_proj_dim) are not supported")
    runtime, rms = Runtime(), original_rms if numerics == "wan" else normed
    for layer, block in enumerate(transformer.blocks):
        block.attn1.set_processor(SelfAttentionProcessor(layer, rms))
        block.attn2.set_processor(CrossAttentionProcessor(layer, runtime, rms))
    transformer.rope = PlanCarrier(runtime)
    if numerics == "wan":
        round_as_original(transformer)


def use_attention(transformer: WanTransformer3DModel, backend: str) -> None:
    """Compute attention with the kernels of `backend`: ``native``, ``cudnn``, ``flash``, ``flash_3``, ``sage`` or
    ``flex``. Raises `UserError` where they are not installed."""
    try:
        transformer.set_attention_backend({"cudnn": "_native_cudnn", "flash_3": "_flash_3"}.get(backend, backend))
    except (RuntimeError, ImportError, ValueError, OSError) as error:
        raise UserError(
            f"the attention kernels {backend!r} cannot be used",
            where="student.attention",
            why=first_line(error),
            fix="install their package, or use auto",
        ) from error
