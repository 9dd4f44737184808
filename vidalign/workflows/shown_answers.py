"""The responses of an evaluation as the page of a run shows them: largest changes of the headline's score first."""

from __future__ import annotations

import math

from vidalign.evaluation.evaluator import Evaluation
from vidalign.report import Answer, ShownAnswers

LONGEST = 20_000
"""Characters that are kept of a response."""


def kept_answers(judged: dict[str, Evaluation]) -> list[ShownAnswers]:
    """The first response of every student to each example, largest change from before to after first."""
    shown = [
        ShownAnswers(
            prompt,
            [Answer(name, _short(one.responses[n]), _score(one, n)) for name, one in judged.items() if one.responses],
            _score(judged["after"], n) - _score(judged["before"], n),
        )
        for n, prompt in enumerate(judged["after"].prompts)
    ]
    return sorted(shown, key=lambda one: -abs(one.change) if math.isfinite(one.change) else 1.0)


def _score(one: Evaluation, number: int) -> float:
    """The headline's score of the first response to an example."""
    return one.output_scores[number].get(one.label(one.headline), math.nan) if one.headline else math.nan


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"
