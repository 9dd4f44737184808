"""The first difference of two protocols or recipes, to name it when a comparison is refused."""

from __future__ import annotations

import yaml

from vidalign.recipe.differences import differences


def first_difference(ours: str, theirs: str) -> str:
    """`key: ours, not theirs` of the first value in which two YAML texts differ; '' when they are equal."""
    for path, here, there in differences(yaml.safe_load(ours), yaml.safe_load(theirs)):
        return f"{path}: {here!r}, not {there!r}"
    return ""
