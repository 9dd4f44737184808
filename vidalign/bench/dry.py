"""A dry step: an objective's own code on a small stand-in of the student, where every call is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vidalign import registry
from vidalign.bench.counter import Counter
from vidalign.build import Parts, assemble, student_kind
from vidalign.context import Batch
from vidalign.cost import Cost, StepSizes, cannot_count
from vidalign.data.source import open_source
from vidalign.engine.config import EngineConfig
from vidalign.rewards.base import CompositeReward
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import judge_experience

if TYPE_CHECKING:
    from vidalign.objectives.base import Objective
    from vidalign.recipe import Recipe

TEACHERS = {"velocity": "model", "few_step": "few_step", "logits": "language"}
"""The built-in teacher that offers what an objective needs, made around a network."""
OFFERS = ("clips", *TEACHERS)
"""What a teacher that there is a stand-in for can offer."""


class DryReward:
    """Scores that differ, so that every group has a signal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._generator = torch.Generator().manual_seed(0)

    def score(self, clips: Any, prompts: Sequence[Any]) -> dict[str, torch.Tensor]:
        """``[B]`` in [0, 1)."""
        return {self.name: torch.rand(len(prompts), generator=self._generator)}


class DryClips:
    """A teacher of grey clips as long as the student's."""

    offers = ("clips",)

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def clips(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """``[N, F, 3, H, W]`` in [0, 1]."""
        return torch.tensor(0.5).expand(len(prompts), *self.shape)


def dry_step(recipe: Recipe, objective: Objective, sizes: StepSizes) -> Cost:
    """What the first step of an objective costs; no weights are read.

    Raises `UserError` for teachers that offer something of their own, for which there is no stand-in.
    """
    student, features, codec = student_kind(recipe).stand_in(recipe.student)
    parts = Parts(
        student=student,
        teacher=_teacher(recipe, objective, student, codec),
        rewards=dry_rewards(sizes.reward_weights),
        prompts=open_source(recipe.training_prompts, recipe.seed, sizes.prompts),
        features=features,
        codec=codec,
    )
    plain = replace(
        recipe,
        student=replace(recipe.student, adapter=None),
        engine=EngineConfig(precision="fp32"),
        tracking=replace(recipe.tracking, clips_every=0),
        trainer=replace(recipe.trainer, score_ahead=False),
    )
    with torch.random.fork_rng(devices=[]):
        ctx = assemble(plain, objective, parts, Tracker.silent(), torch.device("cpu"))
    counter = Counter(ctx)
    batch = Batch(0, [parts.prompts[n] for n in range(sizes.prompts)], list(range(sizes.prompts)))
    with torch.no_grad():
        experience = judge_experience(ctx, objective, objective.collect(ctx, batch))
        for phase in objective.phases(0):
            with ctx.roles.phase(phase.role):
                for ctx.update in range(phase.updates):
                    for piece in objective.micro_batches(ctx, experience, phase):
                        objective.loss(ctx, piece, phase)
    return counter.total()


def dry_rewards(weights: Mapping[str, float]) -> CompositeReward | None:
    """Rewards of these names, none of which looks at a clip; None where there is no name."""
    return CompositeReward({name: DryReward(name) for name in weights}, weights) if weights else None


def _teacher(recipe: Recipe, objective: Objective, student: Any, codec: Any) -> Any:
    """What the objective needs; None where it needs no teacher."""
    offer = objective.needs.teacher
    if offer and offer not in OFFERS:
        cannot_count(objective)
    return dry_teacher(recipe, offer, student, codec, lambda: student_kind(recipe).stand_in(recipe.student)[0])


def dry_teacher(recipe: Recipe, offer: str, student: Any, codec: Any, network: Callable[[], Any]) -> Any:
    """A teacher that gives one of `OFFERS`, around a `network` of its own; None for no offer."""
    if not offer:
        return None
    if offer == "clips":
        _, channels, height, width = student.chunk_shape
        latents = torch.zeros(1, recipe.data.frames, channels, height, width, device=student.device)
        with torch.no_grad():
            return DryClips(codec.decode(latents).shape[1:])
    return registry.get("teachers", TEACHERS[offer])(network())
