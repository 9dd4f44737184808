"""Plugins made from plain settings ``{name: ..., **Config}``, as they stand in recipes, protocols and student files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidalign import registry
from vidalign.errors import Problem, RecipeError, UserError
from vidalign.guest import guest
from vidalign.recipe.source_map import Node
from vidalign.recipe.typed import placed, settings_of


def make(kind: str, name: str, settings: Mapping[str, Any] | None, where: str) -> Any:
    """An instance of the plugin `name` with its own ``Config``.

    Raises RecipeError, which names `where`, for an unknown plugin and for settings that it does not have.
    """
    problems: list[Problem] = []
    try:
        config = settings_of(kind, name, as_node(dict(settings or {}), where), where, problems)
    except UserError as error:
        raise RecipeError(placed(error, where)) from error
    if problems:
        raise RecipeError(problems)
    plugin = registry.get(kind, name)
    with guest(kind.removesuffix("s"), name, plugin):
        return plugin(config)


def as_node(value: Any, where: str) -> Node:
    """Plain data as a tree whose values all stand at one place."""
    if isinstance(value, dict):
        return Node({key: as_node(item, where) for key, item in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([as_node(item, where) for item in value], where)
    return Node(value, where)
