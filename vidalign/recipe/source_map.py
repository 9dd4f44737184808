"""YAML that remembers where each value was written: a tree of `Node`, one for every entry and item.

The tree rather than plain data goes through inheritance and overrides. So a mistake detected at the very end still has
its file and line. Floats may be written 1e-4, which plain YAML 1.1 reads as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vidalign.errors import Problem
from vidalign.reading import regular


@dataclass
class Node:
    """A value (dict of nodes, list of nodes, scalar) and where it was written: `file:line`, `override N`."""

    value: Any
    where: str

    @classmethod
    def of(cls, value: Any, where: str) -> Node:
        """Plain values, all from one place."""
        if isinstance(value, dict):
            return cls({key: cls.of(child, where) for key, child in value.items()}, where)
        return cls([cls.of(child, where) for child in value] if isinstance(value, list) else value, where)

    def plain(self) -> Any:
        """The value without marks."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def locate(self, path: str) -> str:
        """Where the entry with this dotted path was written, or the nearest entry above it."""
        node = self
        for key in path.split("."):
            if not isinstance(node.value, dict) or key not in node.value:
                break
            node = node.value[key]
        return node.where


MAX_DEPTH = 32
"""Levels of nesting in a recipe."""


class _Loader(yaml.SafeLoader):
    """The safe loader with floats such as 1e-4."""


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:float"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?|\.(inf|Inf|nan|NaN))$"
    ),
    list("-+.0123456789"),
)


def read_yaml(path: Path, problems: list[Problem]) -> Node:
    """The file as a tree; syntax mistakes and repeated keys are appended to `problems`."""
    shown = display(path)
    try:
        text = regular(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(f"cannot read {shown}", why=str(error)))
        return Node({}, shown)
    return parse_yaml(text, shown, problems)


def parse_yaml(text: str, where: str, problems: list[Problem]) -> Node:
    """A text as a tree, marked by `where` and the line; mistakes are appended to `problems`."""
    return _parse(text, where, "", problems)


def parse_override(text: str, number: int, problems: list[Problem]) -> Node:
    """`a.b=value` or `~a.b` as a tree with one branch."""
    where = f"override {number}"
    path, equals, written = text.partition("=")
    delete = path.startswith("~")
    keys = path.removeprefix("~").split(".")
    if delete == bool(equals) or not all(keys):
        problems.append(Problem(f"cannot read {text!r}", where, fix="write key=value, or ~key to delete"))
        return Node({}, where)
    if delete:
        keys[-1] = "~" + keys[-1]
    node = _parse(written, "", where, problems) if written else Node(None, where)
    for key in reversed(keys):
        node = Node({key: node}, where)
    return node


def display(path: Path) -> str:
    """The path as it is shown: relative to the current folder when it lies under it."""
    resolved = path.resolve()
    here = Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(path)


def _parse(text: str, file: str, override: str, problems: list[Problem]) -> Node:
    """`override`, when given, is the mark of every value; else the marks are `file` and line."""
    try:
        _check_nesting(text)
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Node({} if file else None, override or file)
        tree = _convert(loader, root, file, override, problems)
        return Node(tree.value, override or file)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(Problem("this is not valid YAML", override or f"{file}:{line}", why=str(error.problem)))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as the 40th of a month
        problems.append(Problem("this is not valid YAML", override or file, why=str(error)))
    return Node({}, override or file)


def _check_nesting(text: str) -> None:
    """Raises MarkedYAMLError for anchors and for a depth that no recipe has, before a tree is made of them."""
    depth = 0
    events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
    for event in events:
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read; copy the value", problem_mark=mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            why = f"it is nested deeper than {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=why, problem_mark=mark)
        if why := _bad_text(getattr(event, "value", None) or ""):
            raise yaml.MarkedYAMLError(problem=why, problem_mark=mark)


def _bad_text(value: str) -> str:
    """What is wrong with a scalar, or ''."""
    if "${" in value:
        return "values such as ${...} are not filled in; write the value itself"
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in value):
        return "it holds a NUL or half of a surrogate pair"
    return ""


def _convert(loader: _Loader, node: yaml.Node, file: str, override: str, problems: list[Problem]) -> Node:
    where = override or f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(loader, item, file, override, problems) for item in node.value], where)
    if not isinstance(node, yaml.MappingNode):
        return Node(loader.construct_object(node, deep=True), where)
    loader.flatten_mapping(node)
    entries: dict[str, Node] = {}
    for key_node, value_node in node.value:
        child = _convert(loader, value_node, file, override, problems)
        child.where = override or f"{file}:{key_node.start_mark.line + 1}"
        key = str(key_node.value)
        if key in entries:
            problems.append(Problem(f"{key!r} is given twice", child.where, f"first at {entries[key].where}"))
        entries[key] = child
    return Node(entries, where)
