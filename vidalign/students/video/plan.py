"""Host-side attention plans: which tokens attend which, in Python ints, made once per forward and shared by
all layers.

A forward sees a sequence of frames (possibly [clean, noisy] for teacher forcing) behind a frozen context. A plan cuts
the query frames into segments. Each segment attends some context slots and some frames of the sequence, all of them
fully. Block-causal patterns therefore need no mask. Seven small unmasked attention calls for four chunks do a third of
the work of one dense masked call, and keep the flash kernels usable. Layouts are pure functions of shapes and policy
and are cached.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from vidalign.students.video.context import Context, runs
from vidalign.students.video.rope import RotaryTables
from vidalign.students.video.spec import CachePolicy, Past

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]
_Key = tuple[Any, ...]
"""The fields of a cache policy."""


@dataclass(frozen=True)
class Segment:
    """Query frames of the sequence and what they attend, as half-open frame spans, in ascending time."""

    query: Span
    context: tuple[Span, ...]
    """Spans of context slots (storage order)."""
    sequence: tuple[Span, ...]
    """Spans of frames of the sequence itself; the last one ends with the query frames' own chunk."""

    @property
    def key_frames(self) -> int:
        return sum(b - a for a, b in (*self.context, *self.sequence))


@dataclass(frozen=True)
class Layout:
    """Segments of one forward and the rotary position of every frame."""

    segments: tuple[Segment, ...]
    positions: tuple[int, ...]
    """Absolute frame index of each frame of the sequence."""
    context_positions: tuple[int, ...] = ()
    relative: bool = False

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Frame indices where some span of the sequence begins or ends, 0 and the length included."""
        spans = [s for segment in self.segments for s in (segment.query, *segment.sequence)]
        return tuple(sorted({0, len(self.positions)} | {edge for span in spans for edge in span}))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The segments in the order of their queries."""
        return tuple(sorted(range(len(self.segments)), key=lambda i: self.segments[i].query))


@dataclass
class AttentionPlan:
    """A layout bound to one forward: travels through the blocks in the place of the rotary embedding."""

    layout: Layout
    batch: int
    tokens: int
    """Tokens per frame."""
    rotary: Tensor | None
    """Rotary factors of the sequence, complex `[frames * tokens, 1, dim / 2]`; None when positions are relative."""
    tables: RotaryTables
    """For positions decided at read."""
    grid: tuple[int, int]
    """Patches per frame, (rows, columns)."""
    context: Context | None = None
    collected: list[tuple[Tensor, Tensor]] | None = None
    """When a list, every self-attention appends its un-roped keys and values (the clean pass)."""
    read: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Context keys (roped) and values per layer as read, reused by the passes that share this plan."""
    text: dict[int, tuple[Tensor, Tensor]] | None = None
    """Cross-attention keys and values per layer, kept while a rollout needs them; None = recompute."""


def _segment(query: Span, past: list[int], own: Span, kept: tuple[int, ...], start: int, clean_at: int) -> Segment:
    """Past frames below `start` come from context slots, the others from the sequence at `clean_at`."""
    slot = {f: i for i, f in enumerate(kept)}
    missing = [f for f in past if f < start and f not in slot]
    assert not missing, f"the context no longer holds the frames {missing} that the cache policy needs"
    context = runs([slot[f] for f in past if f < start])
    sequence = runs(sorted([f - start + clean_at for f in past if f >= start] + list(range(*own))))
    return Segment(query, tuple(context), tuple(sequence))


def _positions(cache: CachePolicy, past: Past, frames: Iterable[int]) -> tuple[int, ...]:
    return tuple(cache.position(frame, past) for frame in frames)


@lru_cache(maxsize=256)
def _next(policy: _Key, kept: tuple[int, ...], past: Past, frames: int, clean: bool) -> Layout:
    cache, start = CachePolicy(*policy), past.frames
    attended = cache.attended_clean(past) if clean else cache.attended(past, frames)
    segment = _segment((0, frames), attended, (0, frames), kept, start, 0)
    anchor = [f + start - past.first - len(attended) for f in range(past.first, past.first + cache.sink)]
    moved = dict(zip(range(past.first, past.first + cache.sink), anchor, strict=True))
    read = [moved.get(f, f) if cache.rope == "anchored" and not clean else f for f in kept]
    positions = _positions(cache, past, range(start, start + frames))
    return Layout((segment,), positions, _positions(cache, past, read), cache.rope == "relative")


@lru_cache(maxsize=256)
def _teacher_forcing(policy: _Key, kept: tuple[int, ...], past: Past, frames: int) -> Layout:
    cache, start = CachePolicy(*policy), past.frames
    size = cache.chunk_frames
    clean = frames - size  # nothing attends the last clean chunk: it is not computed
    segments = []
    for at in range(0, frames, size):
        here = replace(past, frames=start + at)
        if at < clean:
            segments.append(_segment((at, at + size), cache.attended_clean(here), (at, at + size), kept, start, 0))
        noisy = (clean + at, clean + at + size)
        segments.append(_segment(noisy, cache.attended(here), noisy, kept, start, 0))
    positions = _positions(cache, past, (*range(start, start + clean), *range(start, start + frames)))
    return Layout(tuple(segments), positions, _positions(cache, past, kept), cache.rope == "relative")


@lru_cache(maxsize=256)
def _block_causal(policy: _Key, frames: int) -> Layout:
    cache = CachePolicy(*policy)
    size = cache.chunk_frames
    spans = [(at, min(at + size, frames)) for at in range(0, frames, size)]
    segments = tuple(_segment(s, cache.attended(Past(s[0])), s, (), 0, 0) for s in spans)
    return Layout(segments, tuple(range(frames)), (), cache.rope == "relative")


def denoise_layout(policy: CachePolicy, context: Context, frames: int) -> Layout:
    """`frames` frames behind `context`, a chunk or a window of chunks, which attend each other."""
    return _next(astuple(policy), context.kept, context.past, frames, clean=False)


def clean_layout(policy: CachePolicy, context: Context, frames: int) -> Layout:
    """The clean pass of a chunk of `frames` frames behind `context`."""
    return _next(astuple(policy), context.kept, context.past, frames, clean=True)


def teacher_forcing_layout(policy: CachePolicy, context: Context, frames: int) -> Layout:
    """[clean without its last chunk, noisy] behind `context`: clean -> clean block-causal; noisy chunk j ->
    clean chunks < j and itself.
    """
    assert policy.rope != "anchored", "chunks of an anchored policy are denoised in a window, not one by one"
    return _teacher_forcing(astuple(policy), context.kept, context.past, frames)


def recache_layout(policy: CachePolicy, context: Context, frames: int) -> Layout:
    """`frames` frames at the end of `context` that attend each other and every frame it keeps."""
    past = ((0, len(context.kept)),) if context.kept else ()
    positions = tuple(range(context.frames, context.frames + frames))
    segment = Segment((0, frames), past, ((0, frames),))
    return Layout((segment,), positions, context.kept, policy.rope == "relative")


def block_causal_layout(policy: CachePolicy, frames: int) -> Layout:
    """Every chunk attends the chunks before it in the same sequence, and itself."""
    return _block_causal(astuple(policy), frames)


@lru_cache(maxsize=64)
def bidirectional_layout(frames: int) -> Layout:
    """Every frame attends every frame."""
    return Layout((Segment((0, frames), (), ((0, frames),)),), tuple(range(frames)))
