"""Judging language students by a protocol: the same examples and generators for every row, no privileged text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vidalign.bench.judging import Judged, checked
from vidalign.bench.language import answer
from vidalign.bench.metrics.base import Metric
from vidalign.data.examples import Example
from vidalign.guest import guest

if TYPE_CHECKING:
    from vidalign.bench.protocol import Protocol

Answer = Callable[[Sequence[Example], int], list[str]]
"""Examples and a seed to one response each."""


def answers_of(student: Any, protocol: Protocol) -> Answer:
    """How a student answers under a protocol."""
    return partial(answer, student, temperature=protocol.evaluation.temperature)


def judge_answers(give: Answer, protocol: Protocol, metrics: Iterable[Metric]) -> Judged:
    """Answer and grade everything that the protocol asks for; means over the evaluation seeds."""
    sums: dict[str, list[torch.Tensor]] = {}
    for seed in protocol.evaluation.seeds:
        for name, values in _graded(give, protocol.examples, seed, metrics).items():
            sums.setdefault(name, []).append(values)
    return Judged({name: torch.stack(values).nanmean(0).tolist() for name, values in sums.items()})


def judge_few_answers(give: Answer, protocol: Protocol, metrics: Iterable[Metric]) -> dict[str, float]:
    """Means over the first held-out examples and one seed, for the curve during training."""
    few = protocol.examples[: min(protocol.evaluation.curve_prompts, len(protocol.held_out))]
    found = _graded(give, few, protocol.evaluation.seeds[0], metrics)
    return {name: float(values.nanmean()) for name, values in found.items()}


def _graded(
    give: Answer, examples: Sequence[Example], seed: int, metrics: Iterable[Metric]
) -> dict[str, torch.Tensor]:
    responses = give(examples, seed)
    found: dict[str, torch.Tensor] = {}
    for metric in (m for m in metrics if m.judges == "answers"):
        with guest("metric", metric.name, metric):
            graded = metric.grade(responses, examples)
        found |= checked(metric, graded, len(examples))
    return found
