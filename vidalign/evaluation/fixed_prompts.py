"""What a student makes of the same prompts from the same noise along a training run, for trackers that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vidalign.evaluation.evaluator import Evaluator
from vidalign.evaluation.judging import outputs_of

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.trainer import Trainer

COUNT = 4
"""Prompts that are shown, the first of the evaluation."""
TAG = "fixed_prompts"


class FixedPrompts:
    """Shows the first evaluation prompts before the first step, every ``tracking.clips_every`` steps and at the end."""

    def __init__(self, recipe: Recipe, evaluator: Evaluator) -> None:
        seen = recipe.tracking.tensorboard or recipe.trackers
        self.every = recipe.tracking.clips_every if seen else 0
        self.prompts = evaluator.prompts[:COUNT]

    def show(self, trainer: Trainer) -> None:
        """Log clips, or answers of a language student, where it is time; all processes call it."""
        step, tracker = trainer.step, trainer.tracker
        if not self.every or (step % self.every and not trainer.done):
            return
        with tracker.phase(TAG), torch.no_grad(), trainer.ctx.gathered():
            outputs = outputs_of(trainer.ctx.sampler(trainer.recipe.evaluation), self.prompts, 0)
        texts = [str(getattr(prompt, "prompt", prompt)) for prompt in self.prompts]
        if isinstance(outputs, torch.Tensor):
            tracker.clips(step, TAG, outputs, texts, trainer.ctx.student.fps)
            return
        for n, (prompt, answer) in enumerate(zip(texts, outputs, strict=True)):
            tracker.text(step, f"{TAG}/{n}", f"{prompt}\n\n{answer}")
