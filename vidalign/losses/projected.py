"""Losses on hidden states: the vocabulary is met a few rows at a time, and never twice in memory.

A row of logits at V = 151,936 takes 0.58 MB in fp32 and a divergence holds some eight of them, hence 4,096 tokens would
take about 20 GB. Here rows are projected through the lm_head in chunks of `rows`, each under checkpointing: only its
hidden states are kept, the logits come and go, in the forward and again in the backward pass.

R rows, D and D' hidden sizes, V entries of the vocabulary. Heads are modules or functions ``[R, D] -> [R, V]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vidalign.deferred import without_gradient
from vidalign.losses.divergences import Kind, divergence, entropy, log_probs

if TYPE_CHECKING:
    from torch import Tensor

Head = Callable[["Tensor"], "Tensor"]
ROWS = 256
"""Rows of a chunk: 0.16 GB of fp32 logits at V = 151,936."""


def projected_divergence(
    hidden: Tensor,
    head: Head,
    target_hidden: Tensor,
    target_head: Head,
    kind: Kind = "reverse_kl",
    *,
    beta: float = 0.5,
    top_k: int | None = None,
    temperature: float = 1.0,
    rows: int = ROWS,
) -> Tensor:
    """`divergence` of the two heads' logits, ``[R]`` in fp32 or wider; select the rows before.

    hidden ``[R, D]`` and `head` are the student's, and carry gradient; target_hidden ``[R, D']`` does not. Other
    arguments as for `divergence`; the two heads share a vocabulary.
    """

    def chunk(ours: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            target = target_head(theirs)
        return divergence(head(ours), target, kind, beta=beta, top_k=top_k, temperature=temperature)

    return _in_chunks(chunk, (hidden, target_hidden.detach()), rows)


def projected_cross_entropy(hidden: Tensor, head: Head, targets: Tensor, *, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """``-log p(target)`` ``[R]``, fp32 or wider, with gradient, and whether the target is the likeliest entry ``[R]``.

    targets: ``[R]``, entries of the vocabulary.
    """

    def chunk(states: Tensor, target: Tensor) -> Tensor:
        logp = log_probs(head(states))
        right = (logp.argmax(-1) == target).to(logp.dtype)
        return torch.stack([-logp.gather(-1, target[:, None])[:, 0], right], -1)

    losses, right = _in_chunks(chunk, (hidden, targets), rows).reshape(-1, 2).unbind(-1)
    return losses, right.detach()


@without_gradient
def projected_statistics(
    hidden: Tensor, head: Head, tokens: Tensor, *, temperature: float = 1.0, rows: int = ROWS
) -> tuple[Tensor, Tensor]:
    """Log-probability of `tokens` ``[R]`` and entropy of the distribution in nats, both ``[R]``, without gradient."""

    def chunk(states: Tensor, chosen: Tensor) -> Tensor:
        logp = log_probs(head(states), temperature)
        return torch.stack([logp.gather(-1, chosen[:, None])[:, 0], entropy(logp)], -1)

    logp, spread = _in_chunks(chunk, (hidden, tokens), rows).reshape(-1, 2).unbind(-1)
    return logp, spread


def _in_chunks(chunk: Callable[..., Tensor], tensors: tuple[Tensor, ...], rows: int) -> Tensor:
    """`chunk` of every `rows` rows of `tensors`, joined; recomputed in the backward pass where there is one."""
    from torch.utils.checkpoint import checkpoint

    first = tensors[0]
    if not len(first):
        return first.new_zeros(0, dtype=torch.promote_types(first.dtype, torch.float32))
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([chunk(*part) for part in parts])
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
