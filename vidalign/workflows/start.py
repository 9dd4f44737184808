"""The student that training begins with, to be compared with what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vidalign.build import build_student, computing_as
from vidalign.engine.policies import CURRENT, Policies
from vidalign.run_folder import with_weights

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.students.base import Student


def started_student(recipe: Recipe) -> Student[Any]:
    """The student of a recipe before the first step, with the adapter that it goes on from (`student.adapter.start`)
    merged in.

    Its weights are those that training begins with, of the types of the recipe, but held in fp32: a trained student
    is, and 16 bits would keep little of a small update.
    """
    student, adapter = build_student(recipe), recipe.student.adapter
    if adapter is not None and adapter.start:
        weights = Policies(student, (), adapter, seed=recipe.seed).weights(CURRENT)
        student = computing_as(recipe, with_weights(student, weights))
    return student.float()
