"""Drawing tokens from counter-based generators, inside transformers' own `generate` loop.

`CounterSampler` is a logits processor that draws the token itself (inverse of the cumulative distribution, one uniform
number a sample and position). It leaves nothing else possible, so that greedy decoding picks it. What a sample draws
does not depend on the others in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vidalign.students.language_config import Sampling

if TYPE_CHECKING:
    from torch import Tensor


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of logits ``[..., V]`` in at least fp32; temperature 0 counts as 1."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits / (temperature or 1.0)).log_softmax(-1)


def draw(logp: Tensor, uniform: Tensor, sampling: Sampling, banned: Sequence[int] = ()) -> Tensor:
    """Tokens ``[N]`` from log-probabilities ``[N, V]`` and uniform numbers ``[N]`` in [0, 1), never a banned one."""
    logp = logp.index_fill(-1, torch.tensor(banned, dtype=torch.long, device=logp.device), -torch.inf)
    if sampling.temperature == 0:
        return logp.argmax(-1)
    p, order = logp.double().softmax(-1).sort(stable=True, dim=-1, descending=True)
    total = p.cumsum(-1)
    limit = torch.searchsorted(total, torch.full_like(total[:, :1], sampling.top_p)).clamp(max=p.shape[1] - 1)
    if sampling.top_k:
        limit = limit.clamp(max=sampling.top_k - 1)
    mass = total.gather(1, limit)
    place = torch.searchsorted(total, uniform[:, None].to(total) * mass, right=True).minimum(limit)
    return order.gather(1, place)[:, 0]


class CounterSampler:
    """A logits processor for `generate`: draws with one generator a sample and remembers the log-probabilities."""

    def __init__(
        self, sampling: Sampling, generators: Sequence[torch.Generator] | None, banned: Sequence[int] = ()
    ) -> None:
        self.sampling, self.banned = sampling, banned
        self.uniform: Tensor | None = None
        if sampling.temperature > 0:
            assert generators is not None, "drawing needs a generator for every sample"
            count = sampling.max_new_tokens
            self.uniform = torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        logp = log_probabilities(scores, self.sampling.temperature)
        step = len(self.logprobs)
        uniform = logp.new_zeros(len(logp)) if self.uniform is None else self.uniform[:, step].to(logp.device)
        token = draw(logp, uniform, self.sampling, self.banned)[:, None]
        self.logprobs.append(logp.gather(1, token)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
