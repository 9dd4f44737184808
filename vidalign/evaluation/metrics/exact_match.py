"""Exact match of a language student's final answers, over all examples and for every family of problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from vidalign.data.examples import Example
from vidalign.evaluation.metrics.base import Metric
from vidalign.rewards import exact_match


class ExactMatch(Metric):
    """``all``: 1 for the right answer; one entry a family, NaN outside of it."""

    name = "exact_match"
    judges = "answers"
    shown: ClassVar[dict[str, str]] = {"all": "exact match"}

    def grade(self, responses: Sequence[str], examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        exact = exact_match.ExactMatch().score(responses, examples)[self.name]
        scores = {"all": exact}
        for family in dict.fromkeys(example.family for example in examples if example.family):
            inside = torch.tensor([example.family == family for example in examples])
            scores[family] = exact.masked_fill(~inside, float("nan"))
        return scores
