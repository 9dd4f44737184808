"""A recipe as YAML that can be run again, on demand with the docstring and the origin of every value.

Field docstrings are the string literals under the fields of a dataclass. Python does not keep them, so they are read
from the source.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from vidalign.recipe.load import Recipe, as_plain
from vidalign.recipe.schema import Choice
from vidalign.recipe.source_map import Node


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # made in an interactive session: there is no source
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for entry, below in itertools.pairwise(body):
            if not (isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)):
                continue
            if (
                isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[entry.target.id] = " ".join(below.value.value.split())
    return docs


def render(recipe: Recipe, explain: bool = False) -> str:
    """The recipe with every default; with `explain`, what each value means and where it was written."""
    if not explain:
        return recipe.to_yaml()
    docs = field_docs(Recipe)
    lines = []
    for spec in recipe.written():
        lines += ["", *_entry(spec.name, getattr(recipe, spec.name), docs.get(spec.name, ""), recipe.tree, 0)]
    return "\n".join(lines[1:]) + "\n"


def _entry(name: str, value: Any, doc: str, parent: Node, depth: int) -> Iterator[str]:
    indent = "  " * depth
    written = parent.value.get(name) if isinstance(parent.value, dict) else None
    if doc:
        yield f"{indent}# {doc}"
    if isinstance(value, Choice) or is_dataclass(value):
        yield f"{indent}{name}:"
        if isinstance(value, Choice):
            own, choice_docs = [f.name for f in fields(value) if f.name != "config"], field_docs(type(value))
            for key in own:
                doc = "" if key == "name" else choice_docs.get(key, "")
                yield from _entry(key, getattr(value, key), doc, written or Node({}, ""), depth + 1)
            value = value.config
        docs = field_docs(type(value))
        for spec in (one for one in fields(value) if one.init):
            yield from _entry(
                spec.name,
                getattr(value, spec.name),
                docs.get(spec.name, ""),
                written or Node({}, ""),
                depth + 1,
            )
        return
    if isinstance(value, dict) and any(isinstance(item, Choice) for item in value.values()):
        yield f"{indent}{name}:"
        for label, item in value.items():
            yield from _entry(label, item, "", written or Node({}, ""), depth + 1)
        return
    text = yaml.safe_dump(as_plain(value), default_flow_style=True, width=10_000, allow_unicode=True)
    text = text.removesuffix("...\n").strip()
    yield f"{indent}{name}: {text}  # {written.where if written else 'default'}"
