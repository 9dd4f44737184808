"""Recipes that an older version saved in a run folder, read in today's form."""

from __future__ import annotations

from dataclasses import fields

from vidalign import registry
from vidalign.data.source import Chosen, shortened, spelled_out
from vidalign.errors import UserError
from vidalign.recipe.schema import Choice, StudentChoice
from vidalign.recipe.source_map import Node

TEACHER = {"name", "path", "steps", "fps", "skip_corrupt", "cache", "per_prompt", "options"}
"""Every saved section `teacher` had these keys, whichever teacher it named."""
STUDENT = {"name", "path", "init", "chat", "sampling", "cache", "adapter", "checkpointing"}
"""Every saved section `student` had these keys, whichever kind it named."""
DATA = {"prompts", "eval_prompts", "frames", "privilege"}
"""Every saved section `data` had these keys."""
CHOICES: dict[str, type[Choice]] = {"teacher": Choice, "student": StudentChoice}
MOVED = {("data", "privilege"): "the prompts: data.prompts={name: tokens, split: train, privilege: ...}"}
"""Keys that have another place now."""


def current(tree: Node) -> Node:
    """The recipe in today's form.

    Only sections that hold all the old keys were saved by an older version; any other is returned as it is.
    """
    return _prompts(_own(_own(tree, "teacher", TEACHER), "student", STUDENT))


def _prompts(tree: Node) -> Node:
    """The privilege of the data as a setting of the prompts that have it; those that have none did not read it."""
    data = tree.value.get("data") if isinstance(tree.value, dict) else None
    if data is None or not isinstance(data.value, dict) or set(data.value) != DATA:
        return tree
    entries = dict(data.value)
    if not isinstance(entries["prompts"].value, str):
        return tree
    privilege, prompts = entries.pop("privilege"), entries["prompts"]
    try:
        name, settings = spelled_out(prompts.value)
        config = getattr(registry.get("prompts", name), "Config", None)
    except UserError:
        return tree  # reported with the section
    if config is not None and "privilege" in {f.name for f in fields(config)}:
        chosen = shortened({"name": name, **settings, "privilege": privilege.value})
        entries["prompts"] = _node(chosen, prompts.where)
    return Node({**tree.value, "data": Node(entries, data.where)}, tree.where)


def _node(chosen: Chosen, where: str) -> Node:
    """Prompts of a recipe with a mark."""
    if isinstance(chosen, str):
        return Node(chosen, where)
    return Node({key: Node(value, where) for key, value in chosen.items()}, where)


def _own(tree: Node, section: str, old: set[str]) -> Node:
    """Without the keys of other plugins of the kind, which the one that was named did not read."""
    node = tree.value.get(section) if isinstance(tree.value, dict) else None
    if node is None or not isinstance(node.value, dict) or not node.value.keys() >= old:
        return tree
    try:
        own = {f.name for f in fields(registry.get(f"{section}s", str(node.value["name"].value)).Config)}
    except (UserError, TypeError):  # TypeError: its Config is no dataclass
        return tree  # reported with the section
    unread = old - own - {f.name for f in fields(CHOICES[section])}
    kept = {key: child for key, child in node.value.items() if key not in unread}
    return Node({**tree.value, section: Node(kept, node.where)}, tree.where)
