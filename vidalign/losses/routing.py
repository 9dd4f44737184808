"""Routing of tokens to a privileged teacher or to the privileged student (DOPD, arXiv 2606.30626, section 3).

On the sampled token, with ``q = exp(logp)``: gap ``A = |log q_T - log q_S|`` and confidence ``q_S + q_T``.

| regime | condition | who is right |
|---|---|---|
| LH | A < mean A, confidence >= mean | both agree and are sure |
| LL | A < mean A, confidence < mean | both agree and are unsure |
| HT | A >= mean A, q_T >= q_S | the teacher knows more |
| HS | A >= mean A, q_T < q_S | the privileged student knows more |

The four are disjoint and exhaustive. Thresholds are means over all valid tokens of the optimisation batch on all
ranks, after dropping the largest values of A, of q_S and of q_T each by itself; the confidence bar is the sum of the
two means. They are taken once a step, never per micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Regime(IntEnum):
    """Where a token is routed."""

    LH = 0
    LL = 1
    HT = 2
    HS = 3


@dataclass(frozen=True)
class Thresholds:
    """What separates low from high, over the whole batch."""

    gap: float
    confidence: float


def trimmed_mean(values: Tensor, trim: float = 0.05) -> float:
    """Mean of ``[M]`` after dropping the ``floor(trim M)`` largest; 0 for no values at all. In float64."""
    kept = len(values) - int(trim * len(values))
    return float(values.double().sort().values[:kept].mean()) if kept else 0.0


def gap(teacher: Tensor, student: Tensor) -> Tensor:
    """``|log q_T - log q_S|`` of log-probabilities of the sampled tokens, any shape."""
    return (teacher - student).abs()


def confidence(teacher: Tensor, student: Tensor) -> Tensor:
    """``q_S + q_T`` in [0, 2], any shape."""
    return teacher.exp() + student.exp()


def thresholds(teacher: Tensor, student: Tensor, trim: float = 0.05) -> Thresholds:
    """Trimmed means over valid tokens ``[M]`` of the whole batch on all ranks; A, q_S and q_T each drop their own top.

    The confidence bar is mean q_S + mean q_T, not the trimmed mean of their sum (DOPD, section 3).
    """
    sure = trimmed_mean(student.exp(), trim) + trimmed_mean(teacher.exp(), trim)
    return Thresholds(trimmed_mean(gap(teacher, student), trim), sure)


def route(gap: Tensor, confidence: Tensor, endorsed: Tensor, gap_mean: Tensor, confidence_mean: Tensor) -> Tensor:
    """`Regime` of every unit, like `gap`, as int64.

    endorsed: boolean, the teacher is preferred where the two disagree (for tokens ``q_T >= q_S``). The means
    broadcast: one for all tokens, or one per denoising step and chunk for videos.
    """
    low = torch.where(confidence >= confidence_mean, int(Regime.LH), int(Regime.LL))
    high = torch.where(endorsed, int(Regime.HT), int(Regime.HS))
    return torch.where(gap < gap_mean, low, high)


def route_tokens(teacher: Tensor, student: Tensor, limits: Thresholds) -> Tensor:
    """`route` of log-probabilities ``[...]`` of the sampled tokens."""
    a, c = gap(teacher, student), confidence(teacher, student)
    # thresholds are float64 and so are the comparisons: a value equal to the mean counts as high on every rank
    means = (torch.tensor(t, dtype=torch.float64, device=a.device) for t in (limits.gap, limits.confidence))
    return route(a.double(), c.double(), teacher >= student, *means)


def fractions(regimes: Tensor) -> Tensor:
    """Share ``[4]`` of the units, any shape, in every regime; zeros for no units at all."""
    return torch.bincount(regimes.flatten(), minlength=len(Regime)).double() / max(1, regimes.numel())


GAP_EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def gap_histogram(gap: Tensor) -> dict[str, float]:
    """Share of gaps ``[M]`` (nats) in every bin of `GAP_EDGES`, by the bin's lower edge; sums to 1."""
    edges = torch.tensor(GAP_EDGES, dtype=torch.float64, device=gap.device)
    counts = torch.bincount(torch.bucketize(gap.double(), edges, right=True), minlength=len(GAP_EDGES) + 1)
    shares = (counts / max(1, len(gap))).tolist()
    return {f"{low:g}": share for low, share in zip((0.0, *GAP_EDGES), shares, strict=True)}
