"""Divergences of logits as one writes them, differentiated by autograd: the oracle of `vidalign.losses.projected`.

The gradient flows to the student alone and is written as ``sum_v S_v sg[D_v] d log S_v``: as probabilities sum to 1,
the derivative of D drops out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vidalign.losses.divergences import Kind, log_probs

if TYPE_CHECKING:
    from torch import Tensor


def bucket_log_probs(logits: Tensor, index: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities ``[..., K + 1]`` of the tokens at `index` ``[..., K]`` and of all others together.

    logits: ``[..., V]``, K < V. The tail is a logsumexp over the other tokens, not ``log(1 - sum)``, which is rounding
    noise when the K tokens hold nearly all of the mass.
    """
    assert index.shape[-1] < logits.shape[-1], "a tail needs at least one token outside the support"
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    rest = scaled.scatter(-1, index, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([scaled.gather(-1, index), rest], -1).log_softmax(-1)


def divergence(
    student: Tensor,
    target: Tensor,
    kind: Kind = "reverse_kl",
    *,
    beta: float = 0.5,
    top_k: int | None = None,
    chosen_by: str = "student",
    temperature: float = 1.0,
) -> Tensor:
    """Divergence ``[...]`` of two sets of logits ``[..., V]``, at least 0 (up to rounding); gradient to `student` only.

    beta: weight of the target in the mixture, for ``jsd`` alone, in 0..1. top_k: None for the full vocabulary, else the
    support is the K most likely tokens of `chosen_by` and a tail; K >= V is the full vocabulary. temperature: of *both*
    distributions, above 0; the value is not multiplied by its square.
    """
    target = target.detach()
    if top_k is None or top_k >= student.shape[-1]:
        return between(log_probs(student, temperature), log_probs(target, temperature), kind, beta=beta)
    index = (student.detach() if chosen_by == "student" else target).topk(top_k, -1).indices
    ours, theirs = bucket_log_probs(student, index, temperature), bucket_log_probs(target, index, temperature)
    return between(ours, theirs, kind, beta=beta)


def between(student: Tensor, target: Tensor, kind: Kind, *, beta: float = 0.5) -> Tensor:
    """`divergence` of log-probabilities ``[..., V]`` that each sum to 1."""
    if kind == "js":
        return jensen_shannon(student, target, 0.5)
    if kind == "jsd":
        return jensen_shannon(student, target, beta)
    return reverse_kl(student, target) if kind == "reverse_kl" else forward_kl(student, target)


def reverse_kl(student: Tensor, target: Tensor) -> Tensor:
    """``KL(S || T) = sum S (log S - log T)``, ``[..., V] -> [...]``."""
    return (student.exp() * (student - target).detach()).sum(-1)


def forward_kl(student: Tensor, target: Tensor) -> Tensor:
    """``KL(T || S) = sum T (log T - log S)``, ``[..., V] -> [...]``."""
    target = target.detach()
    return (target.exp() * (target - student)).sum(-1)


def jensen_shannon(student: Tensor, target: Tensor, beta: float = 0.5) -> Tensor:
    """GKD's JSD(beta), ``[..., V] -> [...]``; beta 0 is the forward KL, 1 the reverse one (the limits of
    ``JSD / beta`` and ``JSD / (1 - beta)``). At beta 1/2 at most ln 2.

    With ``d = log T - log S`` the mixture is ``log(M / S) = log1p(beta expm1(d))`` for d <= 0 and, from the other
    side, ``log(M / T) = log1p((1 - beta) expm1(-d))``: no overflow, and exactly 0 where d is 0.
    """
    assert 0 <= beta <= 1, "beta is checked by the recipe"
    if beta == 0:
        return forward_kl(student, target)
    if beta == 1:
        return reverse_kl(student, target)
    with torch.no_grad():
        d = target - student
        inner = torch.where(d > 0, (1 - beta) * torch.expm1(-d.abs()), beta * torch.expm1(-d.abs())).log1p_()
        student_to_mixture, target_to_mixture = -inner - d.clamp(min=0), -inner + d.clamp(max=0)
        teacher_part = (target.exp() * target_to_mixture).sum(-1)
    return beta * teacher_part + (1 - beta) * (student.exp() * student_to_mixture).sum(-1)
