"""What the source of a plugin says about it, read without importing the plugin: most of them import torch."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from vidalign import registry

ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
Definition = tuple[ast.ClassDef | ast.FunctionDef, ast.Module]
"""A definition and the module that holds it."""


def describe(kind: str, name: str) -> str:
    """What a plugin is, in one line: the first sentence of its docstring, or its module's, and the papers it names."""
    definition = _definition(kind, name)
    if definition is None:
        return ""
    own, module = (ast.get_docstring(node) or "" for node in definition)
    sentence = _first_sentence(own or module)
    paragraphs = "\n\n".join(module.split("\n\n")[:2])
    numbers = dict.fromkeys(ARXIV.findall(f"{own} {paragraphs}"))
    papers = [f"arXiv {number}" for number in numbers if number not in sentence]
    return sentence + (f" [{', '.join(papers)}]" if papers else "")


def papers(kind: str, name: str) -> list[str]:
    """The arXiv numbers in the line of `describe`, the method's own first."""
    return list(dict.fromkeys(ARXIV.findall(describe(kind, name))))


def settings(kind: str, name: str) -> list[str]:
    """Keys of the plugin's nested ``Config``; inherited ones and those of a class without source are left out."""
    definition = _definition(kind, name)
    for inner in definition[0].body if definition else ():
        if isinstance(inner, ast.ClassDef) and inner.name == "Config":
            fields = [entry.target for entry in inner.body if isinstance(entry, ast.AnnAssign)]
            return [field.id for field in fields if isinstance(field, ast.Name)]
    return []


def owners(kind: str, key: str) -> list[str]:
    """The plugins of a kind that have a setting of this name."""
    return [name for name in registry.names(kind) if key in settings(kind, name)]


def _first_sentence(text: str) -> str:
    """Of a docstring, as plain text on one line without its full stop."""
    paragraph = " ".join(text.partition("\n\n")[0].split()).replace("``", "`")
    return re.split(r"\. (?=[A-Z0-9`])", paragraph)[0].removesuffix(".")


def _definition(kind: str, name: str) -> Definition | None:
    module, _, attribute = registry.target(kind, name).partition(":")
    file = _file(module)
    return _in_file(file, attribute) if file is not None else None


def _file(module: str) -> Path | None:
    """The file of a module; only its name is looked up, no package above it runs."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: a module made by hand, without specification
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and Path(spec.origin).suffix == ".py" else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def _in_file(file: Path, attribute: str) -> Definition | None:
    """The definition in a file, or where the file imports it from."""
    tree = _parsed(file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return node, tree
    for module in _homes(tree, attribute):
        home = _file(module)
        if home is not None and home != file and (definition := _in_file(home, attribute)):
            return definition
    return None


def _homes(tree: ast.Module, attribute: str) -> Iterator[str]:
    """Modules from which a module imports the name, for types alone too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == attribute for a in node.names):
            yield node.module


@lru_cache(maxsize=256)
def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])  # importing it says what is wrong
