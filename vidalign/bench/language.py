"""Evaluation of a language student on held-out examples by exact match, without privileged text.

The same examples and generators before and after; rows for all examples and for every family of problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from vidalign.bench.evaluation import Evaluation
from vidalign.bench.metrics.exact_match import ExactMatch
from vidalign.data.examples import Example
from vidalign.data.language import evaluation_examples
from vidalign.engine.rng import generator

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


def judge_language(
    student: Any, examples: Sequence[Example], seeds: int, temperature: float, done: Callable[[int], None] | None = None
) -> LanguageEvaluation:
    """Answer every example `seeds` times and grade it; the generators depend on example and seed only.

    done: told how many examples have been answered since its last call.
    """
    given = []
    for seed in range(seeds):
        given.append(answer(student, examples, seed, temperature=temperature))
        if done is not None:
            done(len(examples))
    graded = [ExactMatch().grade(texts, examples) for texts in given]
    metrics = {(EXACT, name): torch.stack([found[name] for found in graded]).mean(0) for name in graded[0]}
    prompts = [example.prompt for example in examples]
    return LanguageEvaluation(prompts, metrics, torch.empty(0, 0, 3, 0, 0), [], given[0])


@torch.no_grad()
def answer(student: Any, examples: Sequence[Example], seed: int, *, temperature: float) -> list[str]:
    """One response to every example; the generators depend on example and seed only."""
    sampling = replace(student.spec.sampling, temperature=temperature)
    texts: list[str] = []
    for start in range(0, len(examples), BATCH):
        part = list(examples[start : start + BATCH])
        generators = [generator(seed, "evaluation", 0, start + i) for i in range(len(part))]
        texts += student.decode(student.generate(student.prompts(part), generators, sampling))
    return texts
