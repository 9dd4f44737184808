"""Which room may import which: read from the source, TYPE_CHECKING imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import vidalign

ROOT = Path(vidalign.__file__).parent
WORLDS = "worlds"
TABLE = "registry.py"
"""The one file outside the worlds that names them: as text, in its table of built-in plugins."""


def imports(file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, at its top, inside functions and for types alike."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names = [node.module or ""] if node.module != "vidalign" else [f"vidalign.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "vidalign")


def room(name: str) -> str:
    """The part of the package that a module belongs to."""
    return name.split(".")[1] if "." in name else ""


def files() -> Iterator[tuple[str, Path]]:
    for file in sorted(ROOT.rglob("*.py")):
        yield file.relative_to(ROOT).parts[0].removesuffix(".py"), file


def test_the_worlds_are_reached_through_the_registry_alone() -> None:
    strays = [file for own, file in files() if own != WORLDS and any(room(name) == WORLDS for name in imports(file))]
    assert not strays, strays


def test_the_registry_names_the_worlds_as_text() -> None:
    """So does nothing else: a name inside a string is an import that waits."""
    for own, file in files():
        if own != WORLDS and file.name != TABLE:
            strings = [n.value for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Constant)]
            quoted = [text for text in strings if isinstance(text, str) and text.startswith("vidalign.worlds")]
            assert not quoted, (file, quoted)
