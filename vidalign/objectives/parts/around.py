"""What a recipe says around an objective, for settings that must fit the video, the sampler and the rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidalign.errors import UserError
from vidalign.students.video.checks import written_spec
from vidalign.students.video.spec import Sampler, VideoStudentSpec

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft


@dataclass(frozen=True)
class Around:
    """Known before any weight is loaded."""

    chunks: int
    """Chunks of a video; 0 where they are not known, and for language students."""
    rewards: tuple[str, ...]
    """Names of its rewards, those of weight 0 too."""
    prompts: int
    """Prompts of a step, over all processes."""
    sampler: Sampler | None
    """The video student's sampler, where it is known."""


def around(draft: Draft) -> Around:
    """Of the objective that a draft sees, in a recipe without mistakes so far."""
    recipe = draft.recipe
    rewards = tuple(getattr(recipe.objective, "rewards", None) or recipe.rewards)
    count = recipe.trainer.prompts_per_step
    spec = written_spec(recipe.student) if recipe.student.name == "video" else None
    if spec is None:
        return Around(0, rewards, count, None)
    chunk = (spec.get("cache") or {}) | (recipe.student.cache or {})
    return Around(recipe.data.frames // chunk.get("chunk_frames", 3), rewards, count, _sampler(spec))


def _sampler(spec: dict[str, Any]) -> Sampler | None:
    """The sampler of a student's specification; None where what builds the student will refuse it."""
    try:
        return Sampler(**spec["sampler"]) if "sampler" in spec else VideoStudentSpec().sampler
    except (TypeError, ValueError, UserError):
        return None
