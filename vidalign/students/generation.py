"""What answers the prompts of a rollout: the student itself, or something faster that holds its weights.

A generator is trusted with tokens, not with probabilities. The loss computes the log-probabilities of its tokens with
the trainer's own forward. What the generator says of them is compared with that: `health/on_policy_gap`, which
`trainer.max_on_policy_gap` bounds. So weights of an earlier step, and other numerics, are noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vidalign.errors import PluginError
from vidalign.guest import guest
from vidalign.students.chat import TokenBatch

if TYPE_CHECKING:
    from vidalign.students.base import Weights
    from vidalign.students.language import LanguageStudent
    from vidalign.students.language_config import Sampling


class OwnGenerator:
    """The student itself: it has the weights of the step."""

    def __init__(self, student: LanguageStudent) -> None:
        self.student = student

    def update(self, weights: Weights) -> None:
        """Nothing to hand over."""

    def generate(self, prompts: TokenBatch, sampling: Sampling, generators: Sequence[torch.Generator]) -> TokenBatch:
        return self.student.generate(prompts, generators, sampling)


class CheckedGenerator:
    """Another generator, whose answers are looked at before anything is made of them; raises `PluginError`."""

    def __init__(self, other: Any, student: LanguageStudent) -> None:
        self.other, self.student = other, student

    def update(self, weights: Weights) -> None:
        with self._guest():
            self.other.update(weights)

    def generate(self, prompts: TokenBatch, sampling: Sampling, generators: Sequence[torch.Generator]) -> TokenBatch:
        with self._guest():
            batch = self.other.generate(prompts, sampling, generators)
        if not isinstance(batch, TokenBatch):
            raise self._refusal(f"a {type(batch).__name__}", "a TokenBatch is expected")
        self._check_shapes(batch, prompts, sampling.max_new_tokens)
        self._check_values(batch, prompts)
        assert batch.logprobs is not None, "it has been checked"
        device = prompts.ids.device
        ids, mask, response, logprobs = (x.to(device) for x in (batch.ids, batch.mask, batch.response, batch.logprobs))
        return TokenBatch(ids, mask, response, batch.inputs, logprobs * response)

    def _check_shapes(self, batch: TokenBatch, prompts: TokenBatch, longest: int) -> None:
        rows, columns = prompts.ids.shape
        given = batch.response.shape
        if len(given) != 2 or given[0] != rows or not 1 <= given[1] <= longest:
            raise self._refusal(
                f"response of shape {tuple(given)}", f"({rows}, R) is expected, R in 1..{longest} (max_new_tokens)"
            )
        whole = (rows, columns + given[1])
        expected = {"ids": whole, "mask": whole, "logprobs": tuple(given)}
        for name, shape in expected.items():
            value = getattr(batch, name)
            if value is None or tuple(value.shape) != shape:
                found = "no " + name if value is None else f"{name} of shape {tuple(value.shape)}"
                raise self._refusal(found, f"{shape} is expected")
        for name, dtype in {"ids": torch.int64, "mask": torch.bool, "response": torch.bool}.items():
            if getattr(batch, name).dtype != dtype:
                raise self._refusal(f"{name} of type {getattr(batch, name).dtype}", f"{dtype} is expected")

    def _check_values(self, batch: TokenBatch, prompts: TokenBatch) -> None:
        ids, response = batch.ids.cpu(), batch.response.cpu()
        if not torch.equal(ids[:, : prompts.ids.shape[1]], prompts.ids.cpu()):
            raise self._refusal("other prompts", "the columns of the prompts stay as they are")
        if not response[:, 0].all() or (response[:, 1:] & ~response[:, :-1]).any():
            raise self._refusal("a response with gaps", "a row has one token or more, and padding behind them alone")
        size, tokens = self.student.lm_head.out_features, ids[:, prompts.ids.shape[1] :][response]
        if not (tokens.min() >= 0 and tokens.max() < size):
            worst = int(tokens.max() if tokens.max() >= size else tokens.min())
            raise self._refusal(f"the token {worst}", f"the student's vocabulary has {size} entries")
        assert batch.logprobs is not None, "its shape has been checked"
        logp = batch.logprobs.cpu()[response]
        if not (logp.isfinite() & (logp <= 1e-3)).all():
            raise self._refusal("logprobs above 0, or not finite", "they are log-probabilities of the sampled tokens")

    def _guest(self) -> Any:
        return guest("generator", type(self.other).__name__, self.other)

    def _refusal(self, what: str, why: str) -> PluginError:
        kind = type(self.other)
        return PluginError(f"the generator {kind.__name__!r} returned {what}", where=kind.__qualname__, why=why)
