"""Right or wrong: the known answer of an example, compared by the grader of its source (``data.grader``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from vidalign.data.examples import Example
from vidalign.data.graders import Equals, graded


class ExactMatch:
    """1 for the right answer, 0 for a wrong one or none, by the grader of the prompts; NaN where it is not known."""

    name: ClassVar[str] = "exact_match"
    judges: ClassVar[str] = "texts"

    @staticmethod
    def can_score(example: Example) -> bool:
        """Whether the right answer is known and its grader can compare with it."""
        return bool(example.answer) and (example.grader or Equals()).can_grade(example.answer)

    def score(self, responses: Sequence[str], examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``exact_match`` for B responses."""
        values = [
            graded(one.grader or Equals(), response, one.answer) if self.can_score(one) else float("nan")
            for response, one in zip(responses, examples, strict=True)
        ]
        return {self.name: torch.tensor(values)}
