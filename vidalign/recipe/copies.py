"""A shipped recipe as a file to start from: `commented` shows and explains every value, `merged` only what is set."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import yaml

from vidalign.data.source import shortened
from vidalign.recipe.compose import PROMPTS
from vidalign.recipe.explain import render
from vidalign.recipe.load import Recipe

WIDTH = 110
"""Longest line of a comment, in characters."""
ORIGIN = re.compile(r"^(?P<value>.*?)  # (?P<origin>default|\S+:\d+|overrides?.*)$")


def commented(recipe: Recipe, file: str) -> str:
    """Every value of the recipe below what it means; those that it does not set are marked as defaults.

    file: the name that it will have, for the command in its header.
    """
    lines = _header(recipe, file)
    for line in render(recipe, explain=True).splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if line.lstrip().startswith("# "):
            marks = f"{indent}# "
            lines += textwrap.wrap(line.lstrip()[2:], WIDTH, initial_indent=marks, subsequent_indent=marks)
            continue
        found = ORIGIN.match(line)
        lines.append(line if found is None or found["origin"] == "default" else found["value"])
    return "\n".join(lines) + "\n"


def merged(recipe: Recipe, file: str) -> str:
    """What the recipe and its parents set, in one file without `base:`; every other value stays the default."""
    values: dict[str, Any] = recipe.tree.plain()
    for name, entry in values.get("rewards", {}).items():
        if isinstance(entry, dict) and entry.keys() == {"weight"}:
            values["rewards"][name] = entry["weight"]
    for path in PROMPTS:
        section, key = path.split(".")
        if isinstance(values.get(section, {}).get(key), dict):
            values[section][key] = shortened(values[section][key])
    return "\n".join(_header(recipe, file)) + "\n" + _dump(values)


def _dump(values: dict[str, Any]) -> str:
    """Innermost mappings and lists on one line each."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=WIDTH)


def _header(recipe: Recipe, file: str) -> list[str]:
    """The comment of the recipe with the command of the new file."""
    lines = [f"# {line}".rstrip() for line in recipe.header.splitlines()]
    own = f"# Made from {recipe.name}; what is said below of measured results holds for that recipe."
    return [own, f"# Run: vidalign train {file}", *(line for line in lines if not line.startswith("# Run:"))]
