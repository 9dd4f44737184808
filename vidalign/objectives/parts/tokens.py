"""What on-policy distillation of language students shares: rollouts, hidden states of responses, means over tokens.

M is the number of response tokens of a micro-batch, row after row: every policy that scores the same responses gives
its values in that one order. The temperature of all distributions is the one at which the student samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from vidalign.engine import distributed
from vidalign.engine.zero3 import is_sharded
from vidalign.errors import UserError
from vidalign.losses.projected import projected_divergence, projected_statistics
from vidalign.objectives.base import Experience, LossOut
from vidalign.ranges import require

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import Batch, TrainContext
    from vidalign.students.chat import TokenBatch
    from vidalign.students.language import LanguageStudent

    Context = TrainContext[LanguageStudent]

GENERATE_SLICE = 64
"""Responses generated at once: bounds the memory of the key-value cache."""
Privilege = Literal["own", "shuffled", "none"]


@dataclass
class DistillConfig:
    """What the plain distillation baselines share: one target, one divergence for all tokens."""

    group_size: int = 4
    """Responses per prompt."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "jsd"] = "reverse_kl"
    """Of student and target, see `losses/divergences.py`."""
    beta: float = 0.5
    """Weight of the target in the mixture of jsd, in 0..1."""
    top_k: int | None = None
    """Support: the student's likeliest tokens and a tail; null = the whole vocabulary."""

    def __post_init__(self) -> None:
        require(self, "beta", least=0, most=1)
        require(self, "top_k", least=1)


# --- rollouts ---


def sample(ctx: Context, batch: Batch, group_size: int) -> Experience:
    """Responses of the current policy to bare prompts, `group_size` a prompt.

    Tensors: response_ids ``[N, R]``, response ``[N, R]`` (true on sampled tokens, the stop token included), logp
    ``[N, R]`` of the sampled tokens, sample ``[N]``.
    """
    _refuse_sharded(ctx)
    student = ctx.student
    examples = [example for example in batch.prompts for _ in range(group_size)]
    samples = [number * group_size + g for number in batch.ids for g in range(group_size)]
    generators = ctx.generators("rollout", samples)
    parts = []
    with ctx.gathered():
        for start in range(0, len(examples), GENERATE_SLICE):
            rows = slice(start, start + GENERATE_SLICE)
            parts.append(student.generate(student.prompts(examples[rows]), generators[rows]))
    width = max(part.response.shape[1] for part in parts)
    tensors = {
        "response_ids": torch.cat([_widen(part.response_ids, width) for part in parts]),
        "response": torch.cat([_widen(part.response, width) for part in parts]),
        "logp": torch.cat([_widen(_sampled(part), width) for part in parts]),
        "sample": torch.tensor(samples),
    }
    group_index = torch.arange(len(batch.prompts)).repeat_interleave(group_size)
    return Experience(tensors, group_index, None, batch.prompts, metrics=_lengths(ctx, tensors))


def temperature_of(ctx: Context) -> float:
    """The sampling temperature, that of student *and* teachers; greedy sampling counts as 1."""
    return ctx.student.spec.sampling.temperature or 1.0


def privileged_texts(examples: Sequence[Any], privilege: Privilege) -> list[str]:
    """The privileged text of every prompt: its own, that of the next prompt of the step (a control), or none."""
    own = ["" if privilege == "none" else example.privileged for example in examples]
    if privilege != "shuffled":
        return own
    all_ranks = [text for texts in distributed.all_gather_object(own) for text in texts]
    return [all_ranks[place] for place in distributed.next_prompt_index(len(own))]


# --- scoring ---


def mask_of(data: Experience) -> Tensor:
    """``[N, R']``: `response` up to the longest response of these samples; its true entries are the M tokens."""
    return data["response"][:, : max(1, int(data["response"].sum(1).max()))]


def states(ctx: Context, policy: LanguageStudent, data: Experience, privileged: Sequence[str] | None = None) -> Tensor:
    """``[M, D]``: hidden states of `policy` that predict the response tokens, behind bare or privileged prompts.

    privileged: one text a sample. Prompts are written by the student's chat template, but for a teacher that has chat
    settings of its own.
    """
    mask = mask_of(data)
    examples = [data.prompts[group] for group in data.group_index.tolist()]
    writer = policy if getattr(policy, "own_prompts", False) else ctx.student  # a plugin's model need not say so
    batch = writer.compose(examples, data["response_ids"][:, : mask.shape[1]], mask, privileged)
    return policy.response_hidden(batch)[batch.response]


def tokens_of(data: Experience) -> Tensor:
    """``[M]``: the sampled tokens."""
    mask = mask_of(data)
    return data["response_ids"][:, : mask.shape[1]][mask]


def token_weights(mask: Tensor) -> Tensor:
    """``[M]``, sums to 1: mean over the tokens of a response, then over responses."""
    counts = mask.sum(1, keepdim=True).clamp(min=1)
    return (mask / counts)[mask] / len(mask)


def statistics(
    ctx: Context, policy: LanguageStudent, data: Experience, privileged: Sequence[str] | None
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy ``[N, R]`` of every response token under `policy`, 0 on padding; no gradient.

    privileged: one text a prompt.
    """
    logp = torch.zeros(data["response"].shape, device=ctx.device)
    spread, row = torch.zeros_like(logp), 0
    texts = None if privileged is None else [privileged[group] for group in data.group_index.tolist()]
    for start, stop in data.slices(ctx.micro_batch):
        part = data.candidates(start, stop)
        mask = mask_of(part)
        own = None if texts is None else texts[row : row + len(part)]
        results = projected_statistics(
            states(ctx, policy, part, own), policy.project, tokens_of(part), temperature=temperature_of(ctx)
        )
        for target, values in zip((logp, spread), results, strict=True):
            target[row : row + len(part), : mask.shape[1]][mask] = values.to(target.dtype)
        row += len(part)
    return logp, spread


def gather_tokens(ctx: Context, values: Tensor) -> Tensor:
    """``[m]`` of every process, whose lengths may differ, in rank order."""
    sizes = distributed.all_gather_object(len(values))
    padded = _widen(values[None], max(sizes))[0]
    every = ctx.gather(padded).view(len(sizes), -1)
    return torch.cat([row[:size] for row, size in zip(every, sizes, strict=True)])


# --- loss ---


def single_target_loss(
    ctx: Context,
    data: Experience,
    config: DistillConfig,
    target: LanguageStudent,
    privileged: Sequence[str] | None,
) -> LossOut:
    """The loss of a baseline: every token towards `target`, which sees `privileged` (one text a sample)."""
    student = ctx.student
    ours = states(ctx, student, data)
    with torch.no_grad():
        theirs = states(ctx, target, data, privileged)
    losses = projected_divergence(
        ours,
        student.project,
        theirs,
        target.project,
        config.divergence,
        beta=config.beta,
        top_k=config.top_k,
        temperature=temperature_of(ctx),
    )
    weights = token_weights(mask_of(data)).to(losses.dtype)
    metrics, counts = watch(ctx, data, ours)
    return LossOut((losses * weights).sum(), metrics, counts=counts)


def watch(ctx: Context, data: Experience, hidden: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Entropy of the student, and how far the loss' forward is from the rollout on the rollout's own tokens: mean
    difference of log-probabilities over the tokens that the student sampled (single ones differ by a lot in bf16), and
    their number."""
    mask = mask_of(data)
    logp, spread = projected_statistics(
        hidden.detach(), ctx.student.project, tokens_of(data), temperature=temperature_of(ctx)
    )
    recorded = data["logp"][:, : mask.shape[1]][mask]
    sampled = recorded.isfinite()
    metrics = {
        "objective/entropy/mean": (spread * token_weights(mask).to(spread.dtype)).sum(),
        "health/on_policy_gap/mean": (logp - recorded).abs()[sampled].mean(),
    }
    return metrics, {"health/on_policy_gap/mean": int(sampled.sum())}


def _lengths(ctx: Context, tensors: dict[str, Tensor]) -> dict[str, float]:
    lengths = ctx.gather(tensors["response"].sum(1))
    longest = ctx.student.spec.sampling.max_new_tokens
    return {
        "health/response_tokens/mean": float(lengths.double().mean()),
        "health/at_length_limit/mean": float((lengths >= longest).double().mean()),
    }


def _sampled(batch: TokenBatch) -> Tensor:
    assert batch.logprobs is not None, "a generation says how likely its tokens were"
    return batch.logprobs


def _widen(values: Tensor, width: int) -> Tensor:
    """``[n, w]`` with zeros on the right up to `width`."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _refuse_sharded(ctx: Context) -> None:
    if is_sharded(ctx.roles.engines["student"].network):
        raise UserError(
            "token distillation does not run under ZeRO-3",
            where="engine.zero_stage",
            why="the number of projected chunks differs between processes, and each would gather the head",
            fix="use zero_stage: 2",
        )
