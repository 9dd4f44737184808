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

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from vidalign.deferred import without_gradient
from vidalign.losses.divergences import Kind, divergence, entropy, log_probs, reported_divergence

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
    """Support: the student's K likeliest entries and a tail; None = the whole vocabulary."""


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
    rows = rows or chunk_rows(weight)
    job = (parts, tokens, temperature, rows, torch.is_grad_enabled())
    out: tuple[Tensor, ...] = _Loss.apply(job, hidden, weight, bias)  # type: ignore[no-untyped-call]
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


class _Loss(torch.autograd.Function):
    """Losses and their gradients in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(ctx: Any, job: tuple[Any, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        parts, tokens, temperature, rows, learns = job
        needs = [learns and need for need in ctx.needs_input_grad[1:]]
        work = _Chunks(hidden, weight, bias, temperature, needs)
        with work.plain():
            for part in parts:
                for piece in _split(part, rows):
                    work.learn(piece, tokens)
            if tokens is not None:
                work.watch(tokens, rows)
        ctx.save_for_backward(*work.gradients)
        out = work.results
        ctx.mark_non_differentiable(*out[1:])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # refuses a second pass, unlike an attribute
        return (None, *(None if g is None else g.mul_(gradient.to(g.dtype)) for g in saved))


class _Chunks:
    """The rows of a head, a chunk at a time, and what is added up over them."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, needs: Sequence[bool]
    ) -> None:
        device = hidden.device.type
        low = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if low and weight.dtype != torch.float64 else weight.dtype
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.device, self.temperature = device, temperature
        self.hidden, self.weight = hidden.detach(), weight.detach().to(self.dtype)
        self.bias = None if bias is None else bias.detach().to(self.wide)
        zero = hidden.new_zeros(len(hidden), dtype=self.wide)
        self.results = [zero.new_zeros(()), *(zero.clone() for _ in range(4))]
        self.seen = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        inputs = (hidden, weight, bias)
        self.gradients = [
            torch.zeros_like(x, dtype=self.wide) if need and x is not None else None
            for x, need in zip(inputs, needs, strict=True)
        ]

    def plain(self) -> AbstractContextManager[Any]:
        """No casts but those that are written here."""
        off = torch.amp.is_autocast_available(self.device)
        return torch.autocast(self.device, enabled=False) if off else nullcontext()

    def logits(self, states: Tensor) -> Tensor:
        """``[n, V]`` of the student's head, divided by the temperature."""
        out = torch.mm(states.to(self.dtype), self.weight.t()).to(self.wide)
        if self.bias is not None:
            out.add_(self.bias)
        return out if self.temperature == 1 else out.div_(self.temperature)

    def learn(self, part: Part, tokens: Tensor | None) -> None:
        """Losses of a chunk, and their gradients."""
        index = part.rows
        states = self.hidden[index]
        logp = self.logits(states).log_softmax(-1)
        if tokens is not None:
            self._watch(index, logp, tokens[index])
        if isinstance(part, Written):
            losses, gradient = self._written(index, logp, part.tokens)
        elif isinstance(part, Reported):
            losses, gradient = reported_divergence(logp, part.index, part.logp.to(logp), part.kind, part.beta)
        else:
            target = self._target(part).log_softmax(-1)
            losses, gradient = divergence(logp, target, part.kind, part.beta, part.top_k)
        weights = part.weights.to(losses)
        if not isinstance(part, Reinforced):
            self.results[1].index_add_(0, index, losses)
        self.results[0] += (losses * weights).sum()
        self._add(index, states, gradient.mul_((weights / self.temperature)[:, None]))

    def watch(self, tokens: Tensor, rows: int) -> None:
        """Statistics of the rows that had no loss."""
        for index in (~self.seen).nonzero()[:, 0].split(rows):
            if len(index):
                self._watch(index, self.logits(self.hidden[index]).log_softmax(-1), tokens[index])

    def _watch(self, index: Tensor, logp: Tensor, tokens: Tensor) -> None:
        self.results[2][index] = logp.gather(-1, tokens[:, None])[:, 0]
        self.results[3][index] = entropy(logp)
        self.seen[index] = True

    def _written(self, index: Tensor, logp: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        chosen = logp.gather(-1, tokens[:, None])[:, 0]
        self.results[2][index] = chosen
        self.results[4][index] = (logp.argmax(-1) == tokens).to(self.wide)
        return -chosen, logp.exp_().scatter_add_(-1, tokens[:, None], -torch.ones_like(chosen)[:, None])

    def _target(self, part: Toward) -> Tensor:
        """Logits of the target, divided by the temperature."""
        if part.head is None:
            return self.logits(part.hidden)
        with torch.no_grad():
            given = part.head(part.hidden)
        own = given.to(self.wide) if given.dtype != self.wide else given
        return own if self.temperature == 1 else own / self.temperature

    def _add(self, index: Tensor, states: Tensor, gradient: Tensor) -> None:
        """Gradients of a chunk from that in its logits."""
        of_hidden, of_weight, of_bias = self.gradients
        low = gradient.to(self.dtype)
        if of_hidden is not None:
            of_hidden.index_add_(0, index, torch.mm(low, self.weight).to(self.wide))
        if of_weight is not None:
            if self.dtype == self.wide:
                of_weight.addmm_(low.t(), states.to(self.dtype))
            else:
                of_weight.add_(torch.mm(low.t(), states.to(self.dtype)))
        if of_bias is not None:
            of_bias.add_(gradient.sum(0))


def _split(part: Part, rows: int) -> Iterator[Part]:
    """The same with at most `rows` rows at once."""
    for start in range(0, len(part.rows), rows):
        here = slice(start, start + rows)
        if isinstance(part, Written):
            yield type(part)(part.rows[here], part.weights[here], part.tokens[here])
        elif isinstance(part, Reported):
            yield replace(part, **{name: getattr(part, name)[here] for name in ("rows", "weights", "index", "logp")})
        else:
            one = part
            yield Toward(one.rows[here], one.weights[here], one.hidden[here], one.head, one.kind, one.beta, one.top_k)
