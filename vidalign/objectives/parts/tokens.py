"""What on-policy distillation of language students shares: rollouts, hidden states of responses, means over tokens.

M is the number of response tokens of a micro-batch, row after row: every policy that scores the same responses gives
its values in that one order. The temperature of all distributions is the one at which the student samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from vidalign.deferred import without_gradient
from vidalign.engine import distributed
from vidalign.engine.policies import CURRENT
from vidalign.engine.zero3 import is_sharded
from vidalign.errors import UserError
from vidalign.losses.projected import Head, Part, Projected, Reported, Toward, projected_statistics
from vidalign.objectives.base import Experience, LossOut
from vidalign.objectives.parts.token_rewards import reinforced
from vidalign.ranges import require
from vidalign.students.generation import CheckedGenerator, OwnGenerator
from vidalign.teachers.base import PlacedTeacher, ReportingTeacher

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import Batch, TrainContext
    from vidalign.students.chat import TokenBatch
    from vidalign.students.language import LanguageStudent

    Context = TrainContext[LanguageStudent]

TEACHER = "teacher"
"""The source of a target that is the teacher; the others are weight sets of the student."""
GENERATE_SLICE = 64
"""Responses generated at once unless `Student.rollout_batch` says it: bounds the memory of the key-value cache."""
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
    student, own = ctx.student, ctx.generator is None
    generator = OwnGenerator(student) if own else CheckedGenerator(ctx.generator, student)
    generator.update(lambda: ctx.policies.weights(CURRENT))
    examples = [example for example in batch.prompts for _ in range(group_size)]
    samples = [number * group_size + g for number in batch.ids for g in range(group_size)]
    generators = ctx.generators("rollout", samples)
    parts = []
    with ctx.gathered() if own else nullcontext():
        size = student.rollout_batch or GENERATE_SLICE
        for start in range(0, len(examples), size):
            rows = slice(start, start + size)
            prompts = student.prompts(examples[rows])
            parts.append(generator.generate(prompts, student.spec.sampling, generators[rows]))
    width = max(part.response.shape[1] for part in parts)
    tensors = {
        "response_ids": torch.cat([_widen(part.response_ids, width) for part in parts]),
        "response": torch.cat([_widen(part.response, width) for part in parts]),
        "logp": torch.cat([_widen(_sampled(part), width) for part in parts]),
        "sample": torch.tensor(samples),
    }
    group_index = torch.arange(len(batch.prompts)).repeat_interleave(group_size)
    data = Experience(tensors, group_index, None, batch.prompts, metrics=_lengths(ctx, tensors))
    check_pictures(ctx, data)
    return data


def check_pictures(ctx: Context, data: Experience) -> None:
    """Under ZeRO-3, refuse micro-batches of which some processes have pictures and others none; all ranks call it."""
    if not is_sharded(ctx.roles.engines["student"].network):
        return
    parts = [data.candidates(start, stop) for start, stop in data.slices(ctx.micro_batch)]
    ranks = distributed.all_gather_object([any(example.images for example in part.prompts) for part in parts])
    if any(flags != ranks[0] for flags in ranks):
        raise UserError(
            "a micro-batch has pictures on one process and none on another",
            where="data.prompts",
            why="ZeRO-3 gathers the vision tower where it is called, and the other processes would never answer",
            fix="use engine.zero_stage=2, or prompts that all bring a picture",
        )


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
    writer = policy if getattr(policy, "own_prompts", False) else ctx.student  # a plugin's model need not say so
    batch = writer.compose(data.prompt_of_candidate, data["response_ids"][:, : mask.shape[1]], mask, privileged)
    return policy.response_hidden(batch)[batch.response]


def tokens_of(data: Experience) -> Tensor:
    """``[M]``: the sampled tokens."""
    mask = mask_of(data)
    return data["response_ids"][:, : mask.shape[1]][mask]


def token_weights(mask: Tensor) -> Tensor:
    """``[M]``, sums to 1: mean over the tokens of a response, then over responses."""
    counts = mask.sum(1, keepdim=True).clamp(min=1)
    return (mask / counts)[mask] / len(mask)


class Scored(NamedTuple):
    """What a policy says of every response token, ``[N, R]``, 0 on padding; no gradient."""

    logp: Tensor
    entropy: Tensor
    states: Tensor
    """``[N, R, D]``, the hidden states behind them, for the loss: they are computed once a step."""


def score(ctx: Context, source: str, data: Experience, privileged: Sequence[str]) -> Scored:
    """The responses under `source`, the teacher or a weight set of the student, with one privileged text a prompt."""
    with _placed(ctx, source):
        return _score(ctx, source, data, privileged)


def _score(ctx: Context, source: str, data: Experience, privileged: Sequence[str]) -> Scored:
    """`score`, with the weights of `source` at hand."""
    head = projection(ctx, source)
    logp = torch.zeros(data["response"].shape, device=ctx.device)
    spread, kept, row = torch.zeros_like(logp), logp.new_zeros(0), 0
    texts = [privileged[group] for group in data.group_index.tolist()]
    for start, stop in data.slices(ctx.micro_batch):
        part = data.candidates(start, stop)
        mask, here = mask_of(part), slice(row, row + len(part))
        found = target_states(ctx, source, part, texts[here])
        results = projected_statistics(found, head, tokens_of(part), temperature=temperature_of(ctx))
        if not len(kept):
            kept = found.new_zeros(*logp.shape, found.shape[-1])
        for target, values in zip((logp, spread, kept), (*results, found), strict=True):
            target[here, : mask.shape[1]][mask] = values.to(target.dtype)
        row = here.stop
    return Scored(logp, spread, kept)


@without_gradient
def target_states(ctx: Context, source: str, data: Experience, privileged: Sequence[str] | None) -> Tensor:
    """`states` of a target without gradient: of the teacher, or of a weight set of the student."""
    if source == TEACHER:
        return states(ctx, ctx.teacher.model, data, privileged)
    with ctx.policy(source):
        return states(ctx, ctx.student, data, privileged)


def projection(ctx: Context, source: str) -> Head:
    """Logits of hidden states of a target. All ranks call it; the result is called as often as each of them likes."""
    if source == TEACHER:
        head: Head = ctx.teacher.model.project
        return head
    engine = ctx.roles.engines["student"]
    student = engine.view(own_phase=False)  # inside a pass of the engine there is no second one
    if is_sharded(engine.network):  # the number of calls differs between processes, and each would gather the weight
        with ctx.policy(source):
            copied: Head = student.copied_head()
        return copied

    def project(hidden: Tensor) -> Tensor:
        with ctx.policy(source):
            logits: Tensor = student.project(hidden)
        return logits

    return project


def gather_tokens(ctx: Context, values: Tensor) -> Tensor:
    """``[m]`` of every process, whose lengths may differ, in rank order."""
    sizes = distributed.all_gather_object(len(values))
    padded = _widen(values[None], max(sizes))[0]
    every = ctx.gather(padded).view(len(sizes), -1)
    return torch.cat([row[:size] for row, size in zip(every, sizes, strict=True)])


# --- loss ---


def single_target_loss(
    ctx: Context, data: Experience, config: DistillConfig, source: str, privileged: Sequence[str] | None
) -> LossOut:
    """The loss of a baseline: every token towards `source`, which sees `privileged` (one text a sample)."""
    ours, weights = states(ctx, ctx.student, data), token_weights(mask_of(data))
    if source == TEACHER and isinstance(ctx.teacher, ReportingTeacher):
        every = _reported(ctx, data, weights, config)
        found, metrics, counts = distil(ctx, data, ours, [every])
        return LossOut(found.total, metrics, counts=counts)
    with _placed(ctx, source):
        theirs = target_states(ctx, source, data, privileged)
        head, rows = target_head(ctx, source), torch.arange(len(ours), device=ours.device)
        part = Toward(rows, weights, theirs, head, config.divergence, config.beta, config.top_k)
        found, metrics, counts = distil(ctx, data, ours, [part])
    return LossOut(found.total, metrics, counts=counts)


def _reported(ctx: Context, data: Experience, weights: Tensor, config: DistillConfig) -> Reported:
    """Every token towards what a server reports of it, behind the bare prompt."""
    mask = mask_of(data)
    batch = ctx.student.compose(data.prompt_of_candidate, data["response_ids"][:, : mask.shape[1]], mask, None)
    index, logp = ctx.teacher.top_logprobs(batch)
    return Reported(torch.arange(len(index), device=index.device), weights, index, logp, config.divergence, config.beta)


def _placed(ctx: Context, source: str, *, head: bool = False) -> AbstractContextManager[None]:
    """Weights of a teacher that rest in host memory (of its head alone) are brought to the device once meanwhile."""
    own = source == TEACHER and isinstance(ctx.teacher, PlacedTeacher)
    return ctx.teacher.placement.resident(head=head) if own else nullcontext()


def target_head(ctx: Context, source: str) -> Head | None:
    """The head of a target of the loss; None where it is the student's own as it is."""
    return None if source == CURRENT else projection(ctx, source)


def distil(
    ctx: Context, data: Experience, hidden: Tensor, parts: Sequence[Part]
) -> tuple[Projected, dict[str, Tensor], dict[str, int]]:
    """Losses of the student's states ``[M, D]``, and what is watched beside them: its entropy, and how far the loss'
    forward is from the rollout on the rollout's own tokens, the mean difference of log-probabilities over the tokens
    that the student sampled (single ones differ by a lot in bf16), and their number."""
    mask, sampled_tokens = mask_of(data), tokens_of(data)
    rewarded = reinforced(data, mask, token_weights(mask).to(hidden), sampled_tokens)
    with _placed(ctx, TEACHER, head=True):
        found: Projected = ctx.student.distil(hidden, [*parts, *rewarded], sampled_tokens, temperature_of(ctx))
    recorded = data["logp"][:, : mask.shape[1]][mask]
    sampled = recorded.isfinite()
    metrics = {
        "objective/entropy/mean": (found.entropy * token_weights(mask).to(found.entropy.dtype)).sum(),
        "health/on_policy_gap/mean": (found.logp - recorded).abs()[sampled].mean(),
    }
    for part in rewarded:
        metrics["objective/policy_loss/mean"] = -(found.logp[part.rows] * part.weights).sum()
    return found, metrics, {"health/on_policy_gap/mean": int(sampled.sum())}


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
