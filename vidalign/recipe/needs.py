"""What an objective asks of the other sections of a recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What an objective asks of a recipe; checked before any weight is loaded."""

    students: tuple[str, ...] = ("video",)
    """Kinds of student that it can train."""
    rewards: bool = False
    """Whether at least one reward must be named."""
    discriminator: bool = False
    """Whether the trained reward `discriminator` must be among them."""
    privileged: bool = False
    """Whether it learns from privileged text beside the prompts; without any a recipe is reported."""
    teacher: str = ""
    """What the teacher must offer: ``clips``, ``velocity``, ``few_step``, ``logits`` or nothing."""
    min_group: int = 1
    """Smallest number of candidates per prompt that gives a learning signal."""
