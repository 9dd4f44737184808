"""The blocks of the network, and what each of them is handed.

All that is decided on the host is decided here, before a block runs: a block reads tensors and spans, and nothing that
differs between layers. So one graph serves all blocks (`compiled`). Of what they read only the length of the past is
dynamic: a rollout needs a graph for chunks without a past and one for those behind one, and one more of each for clean
passes. Without compilation a block computes the same from the same parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from torch import Tensor

from vidalign.engine import distributed
from vidalign.errors import UserError
from vidalign.students.video.context import Context, widen
from vidalign.students.video.rope import rotate

if TYPE_CHECKING:
    from vidalign.students.video.plan import AttentionPlan, Layout, Segment, Span

COPY_BYTES = 2**30
"""Most bytes of a shared past that are copied at once, in one layer."""
GRAPHS = 64
"""Most graphs of compiled blocks; a further one, for clips of another size for instance, raises an error."""
TextKeys = tuple[Tensor, Tensor]
"""Keys and values `[P, L, heads, dim]` of texts."""


@dataclass
class Past:
    """The context that one segment attends, in one layer."""

    keys: list[Tensor]
    """A run of frames each, `[b, frames * tokens, heads, dim]`, roped when positions are absolute; a row serves as many
    rows of the batch as there are candidates of a prompt."""
    values: list[Tensor]
    rows: list[Span]
    """Rows of the batch that are computed at once: keys and values are copied for so many."""


@dataclass
class Ask:
    """A segment, by the numbers of the parts that the sequence is cut into."""

    query: list[int]
    sequence: list[int]
    past: Past | None
    factors: Tensor | None
    """Rotary factors of all that it attends, its own queries last; None when positions are absolute."""


@dataclass
class BlockPlan:
    """An `AttentionPlan` as one block reads it."""

    batch: int
    sizes: list[int]
    """Tokens of the parts of the sequence."""
    asks: list[Ask]
    order: list[int]
    """The segments in the order of their queries."""
    rotary: Tensor | None
    """Rotary factors of the sequence; None when positions are relative."""
    collected: list[tuple[Tensor, Tensor]] | None
    """When a list, un-roped keys and values are appended."""


class CausalBlock(WanTransformerBlock):  # type: ignore[misc]  # diffusers is not typed
    """A stock block that takes an `AttentionPlan` in the place of the rotary embedding. Where it is compiled, the graph
    begins behind this call."""

    layer: int

    def __call__(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: AttentionPlan
    ) -> Tensor:
        """Hidden states ``[N, tokens, D]`` at modulation ``[N, 6, D]``, behind text ``[P, L, D]``."""
        text = self._text(encoder_hidden_states, rotary_emb.text)
        own = block_plan(rotary_emb, self.layer, hidden_states.device)
        if self._compiled_call_impl is not None:
            _compilable(own)
        with _few_graphs():
            out: Tensor = super().__call__(hidden_states, text, temb, own)
        if rotary_emb.collected is not None:
            rotary_emb.collected += own.collected or []
        return out

    def _text(self, text: Tensor, kept: dict[int, TextKeys] | None) -> Tensor | TextKeys:
        """The text, or the keys and values that a rollout keeps of it."""
        if kept is None:
            return text
        if self.layer not in kept:
            kept[self.layer] = self.attn2.processor.keys(self.attn2, text)
        return kept[self.layer]


def compiled(transformer: WanTransformer3DModel, **options: Any) -> None:
    """Compile the blocks of a network, every call into one graph; its parameters keep their names. options: see
    `torch.compile`."""
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    for block in transformer.blocks:
        block.compile(fullgraph=True, dynamic=False, **options)


@contextmanager
def _few_graphs() -> Iterator[None]:
    """Raises `UserError` for one graph too many."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "FailOnRecompileLimitHit":  # of a part of torch that only compilation imports
            raise
        raise UserError(
            f"blocks were compiled {GRAPHS} times",
            where="student.compile",
            why="every size of clip, number of rows and weight set takes graphs of its own",
            fix="leave it out, or sample and train in fewer sizes",
        ) from error


def check_compiler(where: str) -> None:
    """Raise `UserError` unless torch finds what it compiles with on this process' device."""
    from torch._inductor import cpp_builder, exc
    from torch.utils._triton import has_triton

    what, fix = "the blocks cannot be compiled", "install it, or leave this out"
    if distributed.device().type != "cpu":
        if not has_triton():
            raise UserError(what, where=where, why="torch finds no Triton for this device", fix=fix)
        return
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise UserError(what, where=where, why="torch finds no C++ compiler (CXX)", fix=fix) from error


def block_plan(plan: AttentionPlan, layer: int, device: torch.device) -> BlockPlan:
    """What the block of a layer reads of a plan."""
    past, layout = _read(plan, layer, device), plan.layout
    asks = [_ask(plan, segment, past, device) for segment in layout.segments]
    sizes = [(b - a) * plan.tokens for a, b in pairwise(layout.cuts)]
    collected: list[tuple[Tensor, Tensor]] | None = None if plan.collected is None else []
    return BlockPlan(plan.batch, sizes, asks, list(layout.order), plan.rotary, collected)


def _ask(plan: AttentionPlan, segment: Segment, past: tuple[Tensor, Tensor] | None, device: torch.device) -> Ask:
    """A segment with its part of the past."""
    own, factors, layout = None, None, plan.layout
    if past is not None and segment.context:
        keys, values = ([_frames(x, span, plan.tokens) for span in segment.context] for x in past)
        copied = sum(x[0].nbytes for x in (*keys, *values))
        own = Past(keys, values, list(slices(plan.batch, plan.batch // len(keys[0]), copied)))
    if layout.relative:
        factors = plan.tables.factors(tuple(range(segment.key_frames)), plan.grid, device)
    return Ask(_parts(layout, (segment.query,)), _parts(layout, segment.sequence), own, factors)


def _read(plan: AttentionPlan, layer: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The context's keys and values of a layer, with the rows that its pieces have: one a prompt where the candidates
    of a prompt share their past. They are read once, and keys are roped then when positions are absolute."""
    context = plan.context
    if context is None or not context.pieces:
        return None
    if layer not in plan.read:
        rows = max(piece.batch for piece in context.pieces)
        keys, values = (_joined_pieces(context, layer, name, rows, device) for name in ("keys", "values"))
        if not plan.layout.relative:
            keys = rotate(keys, plan.tables.factors(plan.layout.context_positions, plan.grid, device))
        plan.read[layer] = keys, values
    return plan.read[layer]


def _joined_pieces(context: Context, layer: int, name: str, rows: int, device: torch.device) -> Tensor:
    """``keys`` or ``values`` of all pieces, one after the other."""
    parts = [getattr(piece, name)[layer].detach().to(device) for piece in context.pieces]
    return torch.cat([widen(x, rows) for x in parts], 1)


def _frames(x: Tensor, span: Span, tokens: int) -> Tensor:
    """A run of frames of ``[N, frames * tokens, ...]``, as a view."""
    return x[:, span[0] * tokens : span[1] * tokens]


def _parts(layout: Layout, spans: tuple[Span, ...]) -> list[int]:
    """Numbers of the parts between the cuts that lie in these spans."""
    return [n for a, b in spans for n, at in enumerate(layout.cuts[:-1]) if a <= at < b]


def slices(rows: int, group: int, nbytes: int) -> Iterator[Span]:
    """Spans of `rows`, whole groups or equal parts of one, with at most `COPY_BYTES` of `nbytes` a row."""
    fits = max(1, COPY_BYTES // nbytes)
    step = fits // group * group if fits >= group else max(k for k in range(1, fits + 1) if group % k == 0)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _compilable(plan: BlockPlan) -> None:
    """Say what changes from chunk to chunk, the length of the past, and split the factors, since compilers make no code
    for complex numbers."""
    if plan.rotary is not None:
        plan.rotary = torch.view_as_real(plan.rotary)
    for ask in plan.asks:
        if ask.factors is not None:
            ask.factors = torch.view_as_real(ask.factors)
        if ask.past is not None:
            changing = [(x, 1) for x in (*ask.past.keys, *ask.past.values)]
            changing += [] if ask.factors is None else [(ask.factors, 0)]
            for x, dim in changing:
                torch._dynamo.maybe_mark_dynamic(x, dim)
