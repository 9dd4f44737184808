"""The contract of a discriminator as a plugin: light until its network is made; the settings that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vidalign.ranges import require

if TYPE_CHECKING:
    import torch

    from vidalign.recipe.draft import Draft
    from vidalign.rewards.discriminators.network import Discriminator
    from vidalign.students.video import VideoStudentSpec

Features = Callable[[Sequence[str]], "torch.Tensor"]
"""Prompt features ``[B, L, D]`` of the student's text encoder."""


@dataclass
class WarmUpConfig:
    """Training on the initial student, before the student moves."""

    accuracy: float | None = 0.8
    """Pair accuracy on held-out prompts at which the warm-up ends, in 0.5..1. null = after `max_steps`: its cost is
    then known beforehand, as equal budgets need it."""
    max_steps: int = 100
    """It ends here at the latest; 0 = no warm-up."""
    prompts: int = 16
    """Prompts, and clips of the student, in each of its steps, over all processes."""
    rollouts: int | None = None
    """Steps with fresh videos of the student. Later steps go through these again, against fresh teacher clips where the
    teacher has more. null = all steps."""

    def __post_init__(self) -> None:
        require(self, "accuracy", least=0.5, most=1)
        require(self, "max_steps", least=0)
        require(self, "prompts", "rollouts", least=1)

    @property
    def rounds(self) -> int:
        """Steps with fresh videos."""
        return self.max_steps if self.rollouts is None else min(self.rollouts, self.max_steps)


@dataclass
class DiscriminatorConfig:
    """How a discriminator is trained; networks add their own sizes."""

    learning_rate: float = 5e-6
    """Learning rate; other optimiser settings are the trainer section's. AFD: 5e-6 and 1e-5 work, 1e-6 saturates, 5e-5
    kills the signal, 0 gets hacked (for LoRA on a 2B network). 0 is the control of that argument. The network stays as
    it is built, is measured as any other, and has no warm-up."""
    loss: Literal["bt", "gan"] = "bt"
    """bt: Bradley-Terry, teacher against student clips of one prompt. gan: the control that separates the two without
    comparing them, ``-log sigmoid(D(x_T, y)) - log sigmoid(-D(x_hat, y))``."""
    warmup_steps: int = 0
    """Optimiser steps in which its learning rate rises to that, from the first of the warm-up on; constant then."""
    updates: int = 1
    """Optimiser steps in each training step, before the candidates are scored."""
    teacher_clips: int = 1
    """Teacher clips drawn for each prompt in each update; every candidate is compared with all of them."""
    reencode: bool = False
    """Pass the teacher's clips through the student's autoencoder, whose traces would give the student away."""
    held_out: float = 0.125
    """Share of the prompts, by a hash of their text, that the discriminator is never trained on. Its pair accuracy
    there separates judgement from memory."""
    warm_up: WarmUpConfig = field(default_factory=WarmUpConfig)
    """Training on the initial student, before the student moves."""

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError("learning_rate must be at least 0, which freezes it")
        require(self, "warmup_steps", least=0)
        require(self, "updates", "teacher_clips", least=1)
        require(self, "held_out", above=0, most=0.5)

    @property
    def warm_up_length(self) -> int:
        """Steps of the warm-up at most: a frozen network has none."""
        return self.warm_up.max_steps if self.learning_rate > 0 else 0


class DiscriminatorKind:
    """A kind of discriminator as it is registered (kind ``discriminators``)."""

    Config: ClassVar[type[DiscriminatorConfig]]
    differentiable: ClassVar[bool] = True
    """Whether scores have a gradient with respect to the clips."""

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The reward that it is the network of is among the rewards."""
        named = "discriminator" in draft.recipe.rewards or not draft.sound("rewards")
        if not named and not (draft.needs is not None and draft.needs.discriminator):
            fix = "add rewards: {discriminator: 1.0}, or delete the section"
            draft.refuse("the discriminator is not among the rewards", "discriminator", "nothing would train it", fix)

    @classmethod
    def from_recipe(cls, config: Any, spec: VideoStudentSpec, features: Features, seed: int) -> Discriminator:
        """The network for the clips and prompts of a student."""
        raise NotImplementedError
