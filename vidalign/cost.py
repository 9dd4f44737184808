"""What one training step costs, said by the objective itself and compared with what a benchmark counts.

Unit of a forward: one chunk of one clip through a network. It is that of the student (any of its weight sets) or of a
further trained role. A pass of teacher forcing over n chunks takes 2 n - 1: the clean past goes through the network
too.

For language students: one response with its prompt through the student, whether it is generated or scored. (With a
key-value cache every position goes through the network once.) Lengths are not known beforehand, so numbers of tokens
are not part of it. Forwards of language and of video students are not comparable with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from vidalign.engine.rng import generator
from vidalign.errors import UserError

if TYPE_CHECKING:
    import torch

    from vidalign.students.video.rollout import RolloutPlan
    from vidalign.students.video.spec import Sampler


@dataclass(frozen=True)
class Cost:
    """Cost of a step, or of many."""

    forwards: float = 0.0
    """Network calls on one chunk of one clip, or on one response."""
    reward_calls: float = 0.0
    """Clips (responses) judged, once for each reward."""
    teacher_calls: float = 0.0
    """Clips that the teacher made, and passes of one clip (response) through its network."""
    responses: float = 0.0
    """Responses that a language student generated."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.reward_calls + other.reward_calls,
            self.teacher_calls + other.teacher_calls,
            self.responses + other.responses,
        )


def cannot_count(objective: Any) -> NoReturn:
    """Raises `UserError`: the objective must say itself what a step costs."""
    raise UserError(
        f"the objective {objective.name!r} does not say what a step costs",
        where=type(objective).__qualname__,
        fix="give it a method cost(sizes), see docs/adding_an_objective.md, or use a budget in seconds",
    )


@dataclass(frozen=True)
class StepSizes:
    """What `Objective.cost` may read about a step; names are those of `TrainContext`."""

    seed: int
    step: int
    prompts: int
    """Prompts of the step, ``trainer.prompts_per_step``."""
    chunks: int
    """Chunks of a video; 0 for a language student."""
    reward_weights: Mapping[str, float]
    """Rewards that the recipe names, with their weights."""
    sampler: Sampler
    """Of a video student; one step for a language student, whose objectives do not read it."""

    count: Callable[[StepSizes, Any], Cost] | None = None
    """Counts one step of an objective on a small stand-in of the student, see `dry_step`."""

    @property
    def rewards(self) -> int:
        """Number of rewards that judge."""
        return len(self.reward_weights)

    def dry_step(self, objective: Any) -> Cost:
        """What the objective's own code does in a first step on a stand-in; raises `UserError` where there is none."""
        return cannot_count(objective) if self.count is None else self.count(self, objective)

    def shared_generator(self, purpose: str) -> torch.Generator:
        """The generator of the context: a random fork is known before the step is run."""
        return generator(self.seed, purpose, self.step)

    def rollout(self, plan: RolloutPlan) -> int:
        """Forwards of a rollout of every prompt: denoising and clean passes, the prefix once per prompt."""
        total = 0
        for chunk in range(plan.chunks):
            clean = chunk < plan.chunks - 1 or plan.keep_final
            calls = len(self.sampler.steps(first=chunk == 0)) + clean
            total += calls * (1 if chunk < plan.prefix else plan.group_size)
        return self.prompts * total

    @staticmethod
    def teacher_forcing(chunks: int) -> int:
        """Forwards of one clip of `chunks` noisy chunks that attend their clean past."""
        return 2 * chunks - 1
