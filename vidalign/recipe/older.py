"""Recipes that an older version saved in a run folder, read in today's form."""

from __future__ import annotations

from dataclasses import fields

from vidalign import registry
from vidalign.errors import UserError
from vidalign.recipe.marks import Node

TEACHER = {"path": "", "steps": 24, "fps": 0.0, "skip_corrupt": False, "cache": "", "per_prompt": 1, "options": {}}
"""The section `teacher` had these keys, with these defaults, whichever teacher it named."""


def current(tree: Node) -> Node:
    """The recipe without the keys of other teachers, where their values are the old defaults.

    Only a section that holds all the old keys was saved by an older version; any other is returned as it is.
    """
    teacher = tree.value.get("teacher") if isinstance(tree.value, dict) else None
    if teacher is None or not isinstance(teacher.value, dict) or not {"name", *TEACHER} <= teacher.value.keys():
        return tree
    try:
        own = {f.name for f in fields(registry.get("teachers", str(teacher.value["name"].value)).Config)}
    except UserError:
        return tree  # reported with the section
    kept = {
        key: child
        for key, child in teacher.value.items()
        if key in own or key not in TEACHER or child.plain() != TEACHER[key]
    }
    return Node({**tree.value, "teacher": Node(kept, teacher.where)}, tree.where)
