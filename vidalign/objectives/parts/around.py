"""What a recipe says around an objective, for settings that must fit the video, the sampler and the rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from vidalign import registry
from vidalign.errors import UserError
from vidalign.recipe.prompts import weights_of_rewards

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video.spec import Sampler


@dataclass(frozen=True)
class Around:
    """Known before any weight is loaded."""

    chunks: int
    """Chunks of a video; 0 where they are not known, and for language students."""
    rewards: Mapping[str, float]
    """Weights of the rewards that judge for it, those of weight 0 too."""
    prompts: int
    """Prompts of a step, over all processes."""
    sampler: Sampler | None
    """The video student's sampler, where it is known."""
    frame: tuple[int, int, int] | None = None
    """(C, h, w) of its latent frames, where they are known."""


def around(draft: Draft) -> Around:
    """Of the objective that a draft sees, in a recipe without mistakes so far."""
    recipe = draft.recipe
    rewards = weights_of_rewards(recipe.objective, recipe)
    count = recipe.trainer.prompts_per_step
    try:
        sizes = registry.get("students", recipe.student.name).sizes(recipe.student, recipe.data.frames)
    except (UserError, SafetensorError, OSError, KeyError, TypeError, ValueError):
        return Around(0, rewards, count, None)  # what builds the student says why
    return Around(sizes.chunks, rewards, count, sizes.sampler, sizes.frame)


def require_renoising(sampler: Sampler | None, what: str) -> None:
    """`UserError` where a sampler draws no noise between its levels, though `what` learns from those draws."""
    if sampler and sampler.solver != "renoise":
        raise UserError(
            f"{what} cannot train a sampler with solver {sampler.solver!r}",
            where="student.sampler.solver",
            why="it learns from the noise that is drawn between two levels, and this solver draws none",
            fix="renoise, or another objective, such as ar_copo with objective.neighbours: initial",
        )
