"""Teacher forcing of a long video in parts, so that it takes the memory of one part.

Behind a part, its clean frames are appended to the context, as a rollout does it: values are those of one call. The
context is frozen, so the gradient of a part does not reach the clean frames of earlier parts. It is that of a training
on a cache (Self-Forcing, arXiv 2506.08009, section 3.2). The backward pass makes every part again, one after the other:
there are two forward passes, and three with gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from vidalign.students.video.context import Context

Parts = Callable[[Tensor], Iterator[tuple[slice, Tensor]]]
"""Noisy frames ``[N, F, C, H, W]`` to the frames of every part and what the network predicts of them."""


def in_parts(
    denoise: Callable[[Tensor, slice, Context], Tensor],
    extend: Callable[[Context, slice], Context],
    x_t: Tensor,
    context: Context,
    size: int,
    weights: Sequence[Tensor],
) -> Tensor:
    """What `denoise` gives for the frames of `x_t` ``[N, F, C, H, W]``, `size` frames at once.

    denoise(x, frames, context): of the frames `frames` of the video, behind their context. extend(context, frames): the
    context with them appended. weights: what a gradient is needed for, beside `x_t`.
    """
    total = x_t.shape[1]

    def parts(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        past = context.expand(len(x) // context.batch)
        for start in range(0, total, size):
            part = slice(start, min(start + size, total))
            yield part, denoise(x[:, part], part, past)
            if part.stop < total:
                past = extend(past, part)

    if torch.is_grad_enabled() and (x_t.requires_grad or weights):
        out: Tensor = _Parts.apply(parts, x_t, *weights)  # type: ignore[no-untyped-call]
        return out
    return torch.cat([predicted for _, predicted in parts(x_t)], 1)


class _Parts(torch.autograd.Function):
    """No graph is kept; the backward pass makes that of one part at a time. Gradients of weights are added up and
    returned once: engines that reduce a gradient when it arrives see one."""

    @staticmethod
    def forward(ctx: Any, parts: Parts, x_t: Tensor, *weights: Tensor) -> Tensor:
        ctx.parts, ctx.weights, ctx.autocast = parts, weights, _autocast(x_t.device.type)
        ctx.save_for_backward(x_t)
        return torch.cat([predicted for _, predicted in parts(x_t)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x_t,) = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        leaf = x_t.detach().requires_grad_(needs[0])
        wanted = [tensor for tensor, need in zip((leaf, *ctx.weights), needs, strict=True) if need]
        sums: list[Tensor | None] = [None] * len(wanted)
        with torch.enable_grad(), ctx.autocast:
            for part, predicted in ctx.parts(leaf):
                found = torch.autograd.grad(predicted, wanted, gradient[:, part], allow_unused=True)
                sums = [_sum(old, new) for old, new in zip(sums, found, strict=True)]
        summed = iter(sums)
        return (None, *(next(summed) if need else None for need in needs))


def _autocast(device: str) -> AbstractContextManager[Any]:
    """The casts that are in force now, for later."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
