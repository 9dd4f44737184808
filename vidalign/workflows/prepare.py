"""What a run needs that can be made without its student: the features of all its prompts, on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidalign.build import asked_prompts, build_prompts, prompt_features
from vidalign.engine import distributed

if TYPE_CHECKING:
    from vidalign.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made."""

    prompts: int
    """Prompts of the run, each counted once; 0 for a student that reads them itself."""
    encoded: int
    """Those that were not on disk before."""
    folder: Path | None
    """Where their features are; None for a student that reads its prompts itself."""


def prepare(recipe: Recipe) -> Prepared:
    """Encode every prompt of a recipe's training and evaluation that is not in the cache on disk, divided over ranks.

    The text encoder runs on this process' device and is released before the return; no student is loaded. Every rank
    calls it. Raises `UserError` for prompts or an encoder that cannot be used.
    """
    distributed.setup(single=recipe.engine.name == "deepspeed")
    source, features = build_prompts(recipe), prompt_features(recipe)
    if features is None:
        return Prepared(0, 0, None)
    prompts = asked_prompts(recipe, source)
    return Prepared(len(prompts), features.prepare(prompts), features.folder)
