"""The first difference of two protocols or recipes, to name it when a comparison is refused."""

from __future__ import annotations

import yaml

from vidalign.errors import Problem
from vidalign.recipe.differences import differences
from vidalign.recipe.source_map import parse_yaml

SEEDS = "seeds"
"""What no cell of a protocol depends on but its own: which other training seeds there are."""


def conditions(text: str) -> str:
    """A protocol as YAML without its list of training seeds: cells of both are comparable where it is equal."""
    plain = yaml.safe_load(text)
    return yaml.safe_dump({key: value for key, value in plain.items() if key != SEEDS}, sort_keys=False)


def first_difference(expected: str, actual: str, but: str = "") -> str:
    """`key: expected, not actual` of the first value in which two YAML texts differ; '' when they are equal, or differ
    in the section `but` alone.

    The other text comes from a file that may have been damaged since: what is wrong with it is a difference too.
    """
    problems: list[Problem] = []
    content = parse_yaml(actual, "line", problems).plain()
    if problems or not isinstance(content, dict):
        return f"it cannot be read: {problems[0] if problems else 'it is no mapping'}"
    for path, here, there in differences(yaml.safe_load(expected), content):
        if path != but:
            return f"{path}: {here!r}, not {there!r}"
    return ""
