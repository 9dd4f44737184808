"""What `projected_loss` computes: chunks of logits, their losses and their gradients, see `projected`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from vidalign.losses.divergences import divergence, entropy, reported_divergence, sampled_divergence
from vidalign.losses.projected import Part, Reinforced, Reported, Toward, Written

if TYPE_CHECKING:
    from torch import Tensor


class ChunkedLoss(torch.autograd.Function):
    """Losses of `projected_loss` and their gradients in the forward pass; the backward pass scales them."""

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
            losses, gradient = (
                divergence(logp, target, part.kind, part.beta, part.top_k, part.chosen_by)
                if part.sampled is None
                else sampled_divergence(logp, target, part.sampled)
            )
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
    """The same with `rows` rows at once; every tensor of a part has one entry a row.

    A rest below a quarter of that joins the last chunk: each chunk reads and writes the whole gradient of the head.
    """
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    count = len(part.rows)
    starts = [start for start in range(0, count, rows) if start == 0 or 4 * (count - start) >= rows]
    for start, end in pairwise([*starts, count]):
        here = slice(start, end)
        cut: dict[str, Any] = {name: v[here] for name, v in values.items() if isinstance(v, torch.Tensor)}
        yield replace(part, **cut)
