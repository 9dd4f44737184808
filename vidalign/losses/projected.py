"""Losses on hidden states: the vocabulary is met a few rows at a time, once.

A row of logits at V = 151,936 takes 0.58 MB in fp32 and a divergence holds some eight of them, hence 4,096 tokens would
take about 20 GB. Here rows are projected through the lm_head in chunks. The gradient is computed in the forward pass,
while the logits are there: with probabilities S of the student and ``a = S dL/d log S``, it is ``g = a - S sum(a)`` in
the student's logits (`divergence`), ``g W`` in the hidden states, and the sum of ``g^T h`` over the chunks in the head.
So there are four matrix products over [rows, V], the target's included, where recomputation in the backward pass takes
seven. One gradient of the head is alive, and the backward pass only scales. The weight of each row in the sum of all
losses is therefore given before.

R rows, D and D' hidden sizes, V entries of the vocabulary. Matrix products are in the type of autocast, or of the
weights; all else is fp32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from vidalign.deferred import without_gradient
from vidalign.losses.divergences import Chooser, Kind, entropy, log_probs

if TYPE_CHECKING:
    from torch import Tensor

Head = Callable[["Tensor"], "Tensor"]
TABLE_BYTES = {"cpu": 120 * 2**20}
"""Size of one table [rows, V] of a chunk, of which up to four are alive, by type of device."""
ACCELERATOR_BYTES = 2**30
"""The same on accelerators, which need larger products."""


@dataclass(frozen=True)
class Toward:
    """Rows that are drawn to the distribution of a target."""

    rows: Tensor
    """``[m]``, rows of the student's hidden states."""
    weights: Tensor
    """``[m]``, the factor of the loss of each row."""
    hidden: Tensor
    """``[m, D']``, hidden states of the target, which get no gradient."""
    head: Head | None
    """``[n, D'] -> [n, V]``, logits of the target; None = the student's own head."""
    kind: Kind = "reverse_kl"
    """See `losses/divergences.py`."""
    beta: float = 0.5
    """Weight of the target in the mixture of ``jsd``."""
    top_k: int | None = None
    """Support: K entries and a tail; None = the whole vocabulary."""
    chosen_by: Chooser = "student"
    """Whose likeliest entries they are."""
    sampled: Tensor | None = None
    """``[m]``, entries that the student sampled: these alone are compared, by reverse KL, instead of a support."""


@dataclass(frozen=True)
class Reported:
    """Rows that are drawn to a target of which only the likeliest tokens are known."""

    rows: Tensor
    weights: Tensor
    index: Tensor
    """``[m, K]``, entries of the vocabulary."""
    logp: Tensor
    """``[m, K]``, their log-probabilities at temperature 1."""
    kind: Kind = "reverse_kl"
    beta: float = 0.5


@dataclass(frozen=True)
class Written:
    """Rows that are drawn to given tokens: cross-entropy."""

    rows: Tensor
    weights: Tensor
    tokens: Tensor
    """``[m]``, entries of the vocabulary."""


@dataclass(frozen=True)
class Reinforced(Written):
    """Given tokens that become likelier where their weight is positive and less likely where it is negative: the policy
    gradient of a weight that is an advantage. Their ``-logp`` is in the total and not in `Projected.losses`."""


Part = Toward | Reported | Written


class Projected(NamedTuple):
    """What `projected_loss` returns, in fp32 or wider."""

    total: Tensor
    """Sum of all losses times their weights, a scalar with gradient."""
    losses: Tensor
    """``[R]``, of each row; 0 where none was asked for. Without gradient, as all that follows."""
    logp: Tensor
    """``[R]``, log-probability of `tokens`, or of the tokens of `Written`; 0 where there are none."""
    entropy: Tensor
    """``[R]``, in nats, where `tokens` are given; else 0."""
    right: Tensor
    """``[R]``, 1 where the token of `Written` is the likeliest entry; else 0."""


def projected_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parts: Sequence[Part],
    tokens: Tensor | None = None,
    *,
    temperature: float = 1.0,
    rows: int = 0,
) -> Projected:
    """Losses of hidden states ``[R, D]`` through the head ``weight [V, D]``, ``bias [V]``, which carry gradient.

    tokens ``[R]``: also return their log-probability and the entropy, of every row. temperature: of student *and*
    targets, above 0. rows: of a chunk; 0 = as many as fit `TABLE_BYTES`.
    """
    from vidalign.losses.chunks import ChunkedLoss

    job = (parts, tokens, temperature, rows or chunk_rows(weight), torch.is_grad_enabled())
    out: tuple[Tensor, ...] = ChunkedLoss.apply(job, hidden, weight, bias)  # type: ignore[no-untyped-call]
    return Projected(*out)


@without_gradient
def projected_statistics(
    hidden: Tensor, head: Head, tokens: Tensor, *, temperature: float = 1.0, rows: int = 256
) -> tuple[Tensor, Tensor]:
    """Log-probability of `tokens` ``[R]`` and entropy of the distribution in nats, both ``[R]``, without gradient."""
    if not len(hidden):
        empty = hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
        return empty, empty
    found = []
    for states, chosen in zip(hidden.split(rows), tokens.split(rows), strict=True):
        logp = log_probs(head(states), temperature)
        found.append((logp.gather(-1, chosen[:, None])[:, 0], entropy(logp)))
    logps, spreads = zip(*found, strict=True)
    return torch.cat(logps), torch.cat(spreads)


def chunk_rows(weight: Tensor) -> int:
    """Rows of a chunk for a head ``[V, D]``."""
    size = TABLE_BYTES.get(weight.device.type, ACCELERATOR_BYTES)
    return max(16, size // (4 * len(weight)))
