"""The frozen clean past of a rollout: an immutable value, never written in place.

Keys and values are stored per chunk ("piece") and un-roped; rotary positions are decided when they are read. New
contexts share the pieces of old ones, so extending, forking, evicting and broadcasting copy nothing. A piece may have a
smaller batch than the context: row n of the context reads row n // (batch // piece batch). So one prefix serves a whole
group (candidates of a prompt are adjacent: index = prompt * group + g).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidalign.students.video.spec import CachePolicy, Past


@dataclass(frozen=True)
class Piece:
    """Keys and values of consecutive clean frames, one tensor `[b, frames * tokens, heads, dim]` per
    layer.
    """

    start: int
    frames: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    def map(self, fn: Callable[[Tensor], Tensor]) -> Piece:
        """A piece with `fn` applied to every tensor."""
        return replace(self, keys=tuple(map(fn, self.keys)), values=tuple(map(fn, self.values)))

    def part(self, start: int, stop: int) -> Piece:
        """The frames start..stop (absolute indices) as views."""
        if (start, stop) == (self.start, self.start + self.frames):
            return self
        tokens = self.keys[0].shape[1] // self.frames
        rows = slice((start - self.start) * tokens, (stop - self.start) * tokens)
        return replace(self.map(lambda x: x[:, rows]), start=start, frames=stop - start)


@dataclass(frozen=True)
class Context:
    """Keys and values of the clean frames that later chunks may attend."""

    batch: int
    past: Past = field(default_factory=Past)
    """How many frames the video has so far, and where its sink and its shots begin."""
    pieces: tuple[Piece, ...] = ()

    @property
    def frames(self) -> int:
        """Frames of the video so far."""
        return self.past.frames

    @property
    def kept(self) -> tuple[int, ...]:
        """Absolute indices of the stored frames, in storage order."""
        return tuple(f for p in self.pieces for f in range(p.start, p.start + p.frames))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors held, shared ones counted once per piece."""
        return sum(x.nbytes for p in self.pieces for x in (*p.keys, *p.values))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Context:
        """A context with `fn` applied to every tensor."""
        return replace(self, pieces=tuple(p.map(fn) for p in self.pieces))

    def detach(self) -> Context:
        return self.map(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> Context:
        return self.map(lambda x: x.to(device))

    def offload(self) -> Context:
        """The same context in host memory, pinned when it comes from an accelerator."""
        return self.map(lambda x: x.to("cpu").pin_memory() if x.is_cuda else x)

    def expand(self, group: int) -> Context:
        """Batch times `group`, each row repeated for its group; copies nothing."""
        return replace(self, batch=self.batch * group)

    def rows(self, index: slice | list[int]) -> Context:
        """The context of some rows of the batch (for micro-batches): views for whole groups and for a part of one, else
        a copy of the chosen rows."""
        chosen = list(range(self.batch))[index] if isinstance(index, slice) else list(index)

        def pick(piece: Piece) -> Piece:
            group = self.batch // piece.batch
            rows = [n // group for n in chosen]
            first, last = rows[0], rows[-1]
            shared = len(chosen) // (last - first + 1)  # what each row is read by
            if rows == [n for n in range(first, last + 1) for _ in range(shared)]:
                return piece.map(lambda x: x[first : last + 1])
            at = torch.tensor(rows, device=piece.keys[0].device)
            return piece.map(lambda x: x.index_select(0, at))

        return replace(self, batch=len(chosen), pieces=tuple(pick(p) for p in self.pieces))

    @staticmethod
    def cat(contexts: list[Context]) -> Context:
        """The context of all rows, from those of parts of them; one context is not copied."""
        first = contexts[0]
        if len(contexts) == 1:
            return first
        pieces = []
        for same in zip(*(context.pieces for context in contexts), strict=True):
            batches = zip(same, (context.batch for context in contexts), strict=True)
            full = [piece.map(lambda x, batch=batch: widen(x, batch)) for piece, batch in batches]
            keys, values = zip(*((piece.keys, piece.values) for piece in full), strict=True)
            pieces.append(replace(same[0], keys=_by_layer(keys), values=_by_layer(values)))
        return replace(first, batch=sum(context.batch for context in contexts), pieces=tuple(pieces))

    def window(self, policy: CachePolicy) -> Context:
        """Without the frames that the next chunk and all later ones cannot attend; with sink_decay, evicted
        frames flow into the sink."""
        needed = set(policy.kept(self.past))
        evicted = [f for f in self.kept if f not in needed]
        if not evicted:
            return self
        kept = [self._frames(a, b) for a, b in runs(sorted(needed))]
        pieces = tuple(p for group in kept for p in group)
        if policy.sink_decay:
            pieces = self._decayed_sink(pieces, evicted, policy)
        return replace(self, pieces=pieces)

    def append(self, piece: Piece) -> Context:
        """With one more chunk, which must start where the context ends."""
        assert piece.start == self.frames, "a chunk must follow the frames that the context already has"
        past = replace(self.past, frames=self.frames + piece.frames)
        return replace(self, past=past, pieces=(*self.pieces, piece))

    def cut(self) -> Context:
        """The same context, behind which another shot begins."""
        return replace(self, past=replace(self.past, cuts=(*self.past.cuts, self.frames)))

    def _frames(self, start: int, stop: int) -> list[Piece]:
        spans = [(max(start, p.start), min(stop, p.start + p.frames), p) for p in self.pieces]
        return [p.part(a, b) for a, b, p in spans if a < b]

    def _decayed_sink(self, pieces: tuple[Piece, ...], evicted: list[int], policy: CachePolicy) -> tuple[Piece, ...]:
        assert len(evicted) == policy.sink, "an EMA sink takes up exactly as many frames as it holds"
        ((start, stop),) = runs(evicted)
        old, new = self._frames(0, policy.sink), self._frames(start, stop)
        assert len(old) == len(new) == 1, "sink and evicted frames must each be one chunk"
        batch = max(old[0].batch, new[0].batch)

        def mix(sink: Tensor, evicted: Tensor) -> Tensor:
            return policy.sink_decay * widen(sink, batch) + (1 - policy.sink_decay) * widen(evicted, batch)

        a, b = old[0], new[0]
        sink = replace(a, keys=tuple(map(mix, a.keys, b.keys)), values=tuple(map(mix, a.values, b.values)))
        return (sink, *(p for p in pieces if p.start >= policy.sink))


class Reader:
    """A context together with its keys as read (roped), shared by the passes over one chunk."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.read: dict[int, tuple[Tensor, Tensor]] = {}


def _by_layer(parts: tuple[tuple[Tensor, ...], ...]) -> tuple[Tensor, ...]:
    """The tensors of every layer, rows of all parts one after the other."""
    return tuple(torch.cat(layer) for layer in zip(*parts, strict=True))


def widen(x: Tensor, batch: int) -> Tensor:
    """Rows repeated in place, `[b, ...] -> [batch, ...]`; the tensor itself when it has `batch` rows
    already.
    """
    return x if x.shape[0] == batch else x.repeat_interleave(batch // x.shape[0], 0)


def runs(indices: list[int]) -> list[tuple[int, int]]:
    """Consecutive runs of an ascending list as (start, stop)."""
    out: list[tuple[int, int]] = []
    for i in indices:
        if out and out[-1][1] == i:
            out[-1] = (out[-1][0], i + 1)
        else:
            out.append((i, i + 1))
    return out
