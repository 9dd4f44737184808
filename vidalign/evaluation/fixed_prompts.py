"""What a student makes of the same prompts from the same noise along a training run, for trackers that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vidalign.evaluation.evaluator import Evaluator
from vidalign.evaluation.judging import Generate, outputs_of

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.tracking.tracker import Tracker

COUNT = 4
"""Prompts that are shown, the first of the evaluation."""
TAG = "fixed_prompts"


class FixedPrompts:
    """Shows the first evaluation prompts before the first step, every ``tracking.clips_every`` steps and at the end."""

    def __init__(self, recipe: Recipe, evaluator: Evaluator) -> None:
        seen = recipe.tracking.tensorboard or recipe.trackers
        self.every = recipe.tracking.clips_every if seen else 0
        self.prompts = evaluator.prompts[:COUNT]

    def due(self, step: int, last: bool) -> bool:
        """Whether it is time to show them."""
        return bool(self.every) and (last or step % self.every == 0)

    def show(self, step: int, generate: Generate, tracker: Tracker, student: Any) -> None:
        """Log clips, or answers of a language student; all processes call it."""
        outputs = outputs_of(generate, self.prompts, 0)
        texts = [str(getattr(prompt, "prompt", prompt)) for prompt in self.prompts]
        if isinstance(outputs, torch.Tensor):
            tracker.clips(step, TAG, outputs, texts, student.fps)
            return
        for n, (prompt, answer) in enumerate(zip(texts, outputs, strict=True)):
            tracker.text(step, f"{TAG}/{n}", f"{prompt}\n\n{answer}")
