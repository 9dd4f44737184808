"""Neighbor GRPO (2511.16955) in x0-space, as AR-CoPO (2603.17461) uses it on a pivot chunk.

G candidates start from neighbouring noises and are rolled out deterministically. At a recorded state of one of them,
the anchor, a policy's prediction x0 is compared with what each candidate predicted at that step:
``d_i = mean |x0^(i) - x0|^2``, ``pi(i) = softmax_i(-d_i / tau)``, ``rho = pi_current / pi_old``. Raising the ratio of a
good candidate pulls the prediction towards it; no log-probability of the sampler is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from vidalign.losses.policy_gradient import clip_fraction, clipped_surrogate


class NeighborGRPO(NamedTuple):
    """What `neighbor_grpo_loss` finds."""

    loss: torch.Tensor
    """``[N]``, to be minimised."""
    ratio: torch.Tensor
    """``[N, G]``, detached."""
    clipped: torch.Tensor
    """Share of the candidates with an advantage whose gradient the clip removes; a scalar."""


def surrogate_log_policy(x0: torch.Tensor, candidates: torch.Tensor, temperature: float) -> torch.Tensor:
    """``log softmax_i(-mean|x0^(i) - x0|^2 / tau)``, ``[N, G]``, in fp32 or wider.

    x0: ``[N, ...]``, carries gradient. candidates: ``[N, G, ...]``, constant. The mean runs over all of a sample.
    """
    dtype = torch.promote_types(x0.dtype, torch.float32)
    difference = candidates.detach().to(dtype) - x0.to(dtype).unsqueeze(1)
    return (-difference.square().flatten(2).mean(2) / temperature).log_softmax(1)


def neighbor_grpo_loss(
    current: torch.Tensor,
    old: torch.Tensor,
    candidates: torch.Tensor,
    advantage: torch.Tensor,
    *,
    clip: float | None,
    temperature: float = 1.0,
) -> NeighborGRPO:
    """``-mean_i min(rho_i A_i, clip(rho_i, 1 +- clip) A_i)`` of each anchor state.

    current, old: predictions of x0 by the two policies at the same N states, ``[N, ...]``; only `current` carries
    gradient. candidates: what the G candidates predicted at that step, ``[N, G, ...]``. advantage: ``[N, G]``.

    Exact: where the policies agree and the advantages of a group sum to zero, the gradient of the loss with respect
    to `current` is ``-(2 / (G tau D)) sum_i A_i x0^(i)`` with D elements a sample, whichever candidate is the anchor.
    """
    now = surrogate_log_policy(current, candidates, temperature)
    before = surrogate_log_policy(old.detach(), candidates, temperature)
    ratio = (now - before).exp()
    loss = -clipped_surrogate(ratio, advantage, clip).mean(1)
    return NeighborGRPO(loss, ratio.detach(), clip_fraction(ratio.detach(), advantage, clip))


def quasi_normalise(advantage: torch.Tensor, p: float) -> torch.Tensor:
    """``sqrt(G) A / (sum |A|^p)^(1/p)`` of each group ``[P, G]``; a group of zeros stays zero.

    p < 1 damps groups in which many candidates stand out (Neighbor GRPO, p = 0.8); the factor sqrt(G), which is ours,
    makes p = 2 leave z-scores as they are.
    """
    norm = advantage.abs().pow(p).sum(1, keepdim=True).pow(1 / p)
    return advantage * float(advantage.shape[1] ** 0.5) / norm.where(norm > 0, torch.ones_like(norm))
