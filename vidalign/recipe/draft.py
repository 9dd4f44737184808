"""A recipe under examination, as the checks see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from vidalign import registry
from vidalign.errors import Problem, UserError
from vidalign.recipe.needs import Needs
from vidalign.recipe.schema import Sections
from vidalign.recipe.source_map import Node
from vidalign.recipe.typed import placed

T = TypeVar("T")


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
        """What the chosen objective needs; None when there is no such objective."""
        name = self.recipe.objective.name
        needs: Needs | None = registry.get("objectives", name).needs if name else None
        return needs

    def sound(self, section: str) -> bool:
        """Whether a section was read without mistake: only then is it checked what was left out of it."""
        return section not in self.broken

    def settings(self, section: str, kind: type[T]) -> T:
        """The settings of the plugin in a section; its defaults where mistakes left none."""
        config = getattr(getattr(self.recipe, section), "config", None)
        return config if isinstance(config, kind) else kind()

    def refuse(self, what: str, path: str, why: str = "", fix: str = "") -> None:
        self.problems.append(Problem(what, self.tree.locate(path), why, fix))

    def refuse_as(self, error: UserError, path: str) -> None:
        """An error met while looking at the value at `path`, reported with its place in the recipe."""
        self.problems += placed(error, self.tree.locate(path))
