"""A recipe under examination, as the checks see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vidalign import registry
from vidalign.errors import Problem, UserError
from vidalign.reading import parse_json
from vidalign.recipe.marks import Node
from vidalign.recipe.schema import Sections, StudentConfig
from vidalign.recipe.typed import placed

if TYPE_CHECKING:
    from vidalign.objectives.base import Needs

LANGUAGE = "language"
"""Kind of student that answers with text."""


@dataclass
class Draft:
    """A recipe under examination."""

    recipe: Sections
    tree: Node
    broken: set[str]
    problems: list[Problem]
    warnings: list[Problem]

    @property
    def needs(self) -> Needs | None:
        """What the chosen objective asks for; None when there is no such objective."""
        name = self.recipe.objective.name
        return registry.get("objectives", name).needs if name else None

    def refuse(self, what: str, path: str, why: str = "", fix: str = "") -> None:
        self.problems.append(Problem(what, self.tree.locate(path), why, fix))

    def pass_on(self, error: UserError, path: str) -> None:
        """An error met while looking at the value at `path`, told with its place in the recipe."""
        self.problems += placed(error, self.tree.locate(path))


def student_spec(student: StudentConfig) -> dict[str, Any] | None:
    """The specification that stands in the header of the weights, or `init`; None when it cannot be read."""
    if student.name != "video":
        return None
    if student.init:
        return student.init
    from vidalign.students.video.checkpoint import resolve

    try:
        with safe_open(resolve(student.path), "np") as file:
            return dict(parse_json((file.metadata() or {})["spec"]))
    except (UserError, SafetensorError, OSError, KeyError, ValueError):
        return None  # the check of the weights says why
