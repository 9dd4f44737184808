"""Divergences between the next-token distributions of a student S and a target T (DOPD, arXiv 2606.30626; GKD,
arXiv 2306.13649, equation 1; Agarwal et al.).

| kind | value | natural use |
|---|---|---|
| ``reverse_kl`` | ``KL(S || T)`` | mode seeking: what on-policy distillation takes |
| ``forward_kl`` | ``KL(T || S)`` | mode covering |
| ``js`` | ``(KL(T || M) + KL(S || M)) / 2``, ``M = (S + T) / 2`` | bounded by ln 2 |
| ``jsd`` | ``beta KL(T || M) + (1 - beta) KL(S || M)``, ``M = beta T + (1 - beta) S`` | GKD; beta 0 and 1 are the KLs |

Natural logarithms, fp32 or wider. With probabilities S of the student and ``a = S dL/d log S``, the gradient in the
student's logits is ``a - S sum(a)``, where the derivative of the bracket drops out, as probabilities sum to 1. It is
*exactly* zero where the two agree, which differentiating ``S log(S / T)`` is not (rounding leaves 1e-8 on every entry).

On a support of K tokens, the likeliest of the student or of the target, the rest of the vocabulary becomes one more
bucket. Plain truncation sums to less than 1 and can be negative: -0.162 in the example of the tests.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["reverse_kl", "forward_kl", "js", "jsd"]
Chooser = Literal["student", "target"]
"""Whose likeliest tokens are a support."""


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``log softmax(logits / temperature)`` over the last dimension, ``[..., V]``, in fp32 or wider."""
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


def entropy(log_p: Tensor) -> Tensor:
    """``-sum p log p`` in nats, ``[..., V] -> [...]``."""
    return -(log_p.exp() * log_p).sum(-1)


def divergence(
    ours: Tensor, theirs: Tensor, kind: Kind, beta: float, top_k: int | None, chosen_by: Chooser = "student"
) -> tuple[Tensor, Tensor]:
    """Divergences ``[n]``, at least 0 up to rounding, and their gradient ``[n, V]`` in the student's logits.

    ours, theirs: log-probabilities ``[n, V]`` of student and target, fp32 or wider; both are overwritten. beta: weight
    of the target in the mixture of ``jsd``, in 0..1. top_k: None for the full vocabulary, else the support is the K
    most likely tokens of `chosen_by` and a tail; K >= V is the full vocabulary. The derivative in a temperature is left
    to the caller: divide the gradient by it.
    """
    if top_k is None or top_k >= ours.shape[-1]:
        losses, pull, total = _pull(ours, theirs, kind, beta)
        return losses, pull.addcmul_(ours, total[:, None], value=-1)
    index = (ours if chosen_by == "student" else theirs).topk(top_k, -1).indices
    return _on_support(ours, _buckets(theirs, index), index, kind, beta)


def reported_divergence(ours: Tensor, index: Tensor, logp: Tensor, kind: Kind, beta: float) -> tuple[Tensor, Tensor]:
    """`divergence` on a support that the target has chosen, its likeliest tokens at `index` ``[n, K]`` with the
    log-probabilities `logp` ``[n, K]``, and a tail; no more is known of the target. `ours` ``[n, V]`` is
    overwritten."""
    rest = -torch.expm1(logp.logsumexp(-1, keepdim=True))
    others = torch.cat([logp, rest.clamp(min=LEAST_TAIL).log()], -1).log_softmax(-1)
    return _on_support(ours, others, index, kind, beta)


def sampled_divergence(ours: Tensor, theirs: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates of the reverse KL ``[n]`` and of its gradient ``[n, V]`` by one sampled token y a row.

    The first is ``log S(y) - log T(y)``, which can be negative, the second is the first times the gradient of
    ``log S(y)``. Their means over y ~ S are the values of `divergence`. ours, theirs: log-probabilities ``[n, V]``;
    `ours` is overwritten. tokens: ``[n]``.
    """
    chosen = tokens[:, None]
    losses = (ours.gather(-1, chosen) - theirs.gather(-1, chosen))[:, 0]
    score = ours.exp_().neg_().scatter_add_(-1, chosen, torch.ones_like(losses)[:, None])
    return losses, score.mul_(losses[:, None])


LEAST_TAIL = 1e-6
"""Least probability of a tail that is known as ``1 - sum`` alone, whose rounding it covers."""


def _on_support(ours: Tensor, others: Tensor, index: Tensor, kind: Kind, beta: float) -> tuple[Tensor, Tensor]:
    """Divergences of the buckets of the student from those of the target, ``[n, K + 1]``, and the whole gradient."""
    buckets = _buckets(ours, index)
    tail = buckets[:, -1:].clone()
    losses, pull, total = _pull(buckets, others, kind, beta)
    inside = pull - buckets * total[:, None]
    rest = ours.sub_(tail).exp_()  # probabilities within the tail; those of the support are replaced
    return losses, rest.mul_(inside[:, -1:]).scatter_(-1, index, inside[:, :-1])


def _buckets(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probabilities ``[n, K + 1]`` of the tokens at `index` ``[n, K]`` and of all others together.

    The tail is a logsumexp and not ``log(1 - sum)``, which is rounding noise when the K tokens hold nearly all of the
    mass. `logits` ``[n, V]`` are changed and get their values back.
    """
    kept = logits.gather(-1, index)
    rest = logits.scatter_(-1, index, -math.inf).logsumexp(-1, keepdim=True)
    logits.scatter_(-1, index, kept)
    return torch.cat([kept, rest], -1).log_softmax(-1)


def _pull(ours: Tensor, theirs: Tensor, kind: Kind, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses ``[n]``, ``a = S dL/d log S`` ``[n, v]`` and its sum ``[n]``. Log-probabilities of the student and the
    target, ``[n, v]`` each, are overwritten: `ours` becomes S. All are exactly 0 in sum where the two agree."""
    beta = {"reverse_kl": 1.0, "forward_kl": 0.0, "js": 0.5}.get(kind, beta)
    if beta == 1:  # S (log S - log T)
        gap = torch.sub(ours, theirs, out=theirs)
        losses = torch.linalg.vecdot(ours.exp_(), gap)
        return losses, gap.mul_(ours), losses
    if beta == 0:  # -T
        p = theirs.exp()
        losses = torch.linalg.vecdot(p, theirs.sub_(ours))
        ours.exp_()
        return losses, p.neg_(), -torch.ones_like(losses)
    p = theirs.exp()
    d = theirs.sub_(ours)
    teacher = torch.linalg.vecdot(p, d.clamp(max=0))
    ours.exp_()
    inner = d.abs().neg_().expm1_()
    inner = (
        inner.mul_(beta if beta == 0.5 else torch.where(d > 0, d.new_tensor(1 - beta), d.new_tensor(beta)))
        .log1p_()
        .neg_()
    )
    teacher += torch.linalg.vecdot(p, inner)  # log T - log M = inner + min(d, 0)
    inner.sub_(d.clamp_(min=0))  # log S - log M
    own = torch.linalg.vecdot(ours, inner)
    return beta * teacher + (1 - beta) * own, inner.mul_(ours).mul_(1 - beta), (1 - beta) * own
