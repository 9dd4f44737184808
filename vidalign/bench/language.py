"""Evaluation of a language student on held-out examples by exact match, without privileged text.

The same examples and generators before and after; rows for all examples and for every family of problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from vidalign.bench.evaluation import Evaluation
from vidalign.data.examples import Example
from vidalign.data.language import evaluation_examples
from vidalign.engine.rng import generator
from vidalign.tasks.grader import ExactMatch

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

BATCH = 64
"""Responses generated at once."""
EXACT = "exact match"
ALL = "all"


@dataclass
class LanguageEvaluation(Evaluation):
    """Judgement of P examples; ``(exact match, all)`` ``[P]`` and one entry a family, NaN outside of it."""

    responses: list[str] = field(default_factory=list)
    """The first response to every example."""

    def health(self) -> dict[str, float]:
        return {"health/held_out/mean": float(self.metrics[EXACT, ALL].nanmean())}


def held_out_examples(recipe: Recipe) -> list[Example]:
    """The evaluation examples of a recipe, without privileged text."""
    settings = recipe.evaluation
    return evaluation_examples(settings.prompts or recipe.data.eval_prompts, settings.count)


@torch.no_grad()
def judge_language(student: Any, examples: Sequence[Example], seeds: int, temperature: float) -> LanguageEvaluation:
    """Answer every example `seeds` times and grade it; the generators depend on example and seed only."""
    sampling = replace(student.spec.sampling, temperature=temperature)
    scores: list[torch.Tensor] = []
    responses: list[str] = []
    for seed in range(seeds):
        for start in range(0, len(examples), BATCH):
            part = list(examples[start : start + BATCH])
            generators = [generator(seed, "evaluation", 0, start + i) for i in range(len(part))]
            texts = student.decode(student.generate(student.prompts(part), generators, sampling))
            scores.append(ExactMatch().score(texts, part)[ExactMatch.name])
            responses += texts if seed == 0 else []
    exact = torch.cat(scores).view(seeds, -1).mean(0)
    metrics = {(EXACT, ALL): exact}
    for family in dict.fromkeys(example.family for example in examples if example.family):
        inside = torch.tensor([example.family == family for example in examples])
        metrics[EXACT, family] = exact.masked_fill(~inside, float("nan"))
    prompts = [example.prompt for example in examples]
    return LanguageEvaluation(prompts, metrics, torch.empty(0, 0, 3, 0, 0), [], responses)
