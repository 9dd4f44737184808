"""The exact grader: what stands after the last ``=`` of a response, word for word."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidalign.data.examples import Example


def final_answer(response: str) -> str | None:
    """The words after the last ``=``, single-spaced; None when there is no ``=``."""
    _, mark, answer = response.rpartition("=")
    return " ".join(answer.split()) if mark else None


class ExactMatch:
    """1 for the right answer, 0 for a wrong one or none; NaN where the answer is not known."""

    name = "exact_match"
    judges = "texts"

    @staticmethod
    def can_score(example: Example) -> bool:
        """Whether the right answer is known."""
        return bool(example.answer)

    def score(self, responses: Sequence[str], examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``exact_match`` for B responses."""
        values = [
            float(final_answer(response) == " ".join(example.answer.split())) if example.answer else float("nan")
            for response, example in zip(responses, examples, strict=True)
        ]
        return {self.name: torch.tensor(values)}
