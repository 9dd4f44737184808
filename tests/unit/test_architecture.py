"""Which room may import which: read from the source, TYPE_CHECKING imports included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import vidalign
from vidalign import registry

ROOT = Path(vidalign.__file__).parent
WORLDS = "worlds"
TABLE = "registry.py"
"""The one file outside the worlds that names them: as text, in its table of built-in plugins."""
ALONE = "serving"
"""The room that `vidalign-serve` packs under another name: it imports itself relatively, and no other room."""
LAYERS = (
    ("errors", "deferred", "ranges", "version", "serving"),
    ("registry", "guest", "reading", "writing", "tensor_writing", "owner", "quiet", "requests", "asked"),
    ("plugin_source", "tensor_header", "losses", "engine", "tracking"),
    ("data", "report"),
    ("recipe", "plugins"),
    ("codecs", "text", "provenance"),
    ("students",),
    ("teachers", "cost"),
    ("rewards",),
    ("context", "evaluation"),
    ("objectives",),
    ("callbacks",),
    ("build",),
    ("run_folder",),
    ("trainer",),
    ("bench",),
    ("worlds",),
    ("workflows",),
    ("play",),
    ("__init__",),
    ("cli",),
    ("testing",),
)
"""The rooms from the lowest up: a room may import those of lower layers and none beside or above it."""
AGAINST: dict[tuple[str, str], str] = {}
"""Arrows that run up or sideways, with the reason."""


def imports(file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, at its top, inside functions and for types alike."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if ALONE in file.parts:
                assert node.level == 1 or (node.module or "").split(".")[0] != "vidalign", f"{file} imports vidalign"
                continue
            assert node.level == 0, f"{file} imports relatively"
            names = [node.module or ""] if node.module != "vidalign" else [f"vidalign.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "vidalign")


def room(name: str) -> str:
    """The part of the package that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


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


def arrows() -> dict[tuple[str, str], list[str]]:
    """Which room imports which, with the files that do."""
    found: dict[tuple[str, str], list[str]] = {}
    for own, file in files():
        for other in sorted({room(name) for name in imports(file)} - {own}):
            found.setdefault((own, other), []).append(str(file.relative_to(ROOT)))
    return found


def against(found: dict[tuple[str, str], list[str]]) -> dict[tuple[str, str], list[str]]:
    """Those that do not run down."""
    level = {name: n for n, layer in enumerate(LAYERS) for name in layer}
    return {arrow: where for arrow, where in found.items() if level[arrow[0]] <= level[arrow[1]]}


KIND_OF_ROOMS = {"students", "teachers", "rewards", "objectives", "worlds", "testing"}
"""Rooms that may be about one kind of student."""
OF_ONE_KIND = {
    ("workflows/collect.py", "vidalign.students.video.rollout.buffer"): "a buffer holds the groups of AR-CoPO",
    ("cost.py", "vidalign.students.video.rollout"): "a rollout's own cost, which objectives of videos ask for",
    ("cost.py", "vidalign.students.video.spec"): "its sampler",
}
"""Modules of one kind of student that other rooms import, with the reason."""


def kind_names(file: Path) -> set[str]:
    """Names of kinds of student that the code of a file compares something with."""
    kinds = {name for name, source in registry.names("students").items() if source == "vidalign"}
    compared = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Compare)]
    values = [part for node in compared for part in (node.left, *node.comparators)]
    return {str(part.value) for part in values if isinstance(part, ast.Constant)} & kinds


def test_no_room_but_their_own_knows_the_kinds_of_student() -> None:
    """They ask `StudentKind`: a third kind needs no edit."""
    others = [(own, file) for own, file in files() if own not in KIND_OF_ROOMS]
    assert {str(file.relative_to(ROOT)) for _, file in others if kind_names(file)} == set()
    imported = {
        (str(file.relative_to(ROOT)), name)
        for own, file in others
        for name in imports(file)
        if re.match(r"vidalign\.students\.(?!base|kind|live|samples|spec|weights|exchange|streamed|hub|rounding)", name)
    }
    assert imported == set(OF_ONE_KIND)


def test_a_branch_on_the_kind_of_student_is_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('def f(name):\n    return 1 if name == "video" else "language"\n')
    assert kind_names(file) == {"video"}


def test_every_room_has_a_layer() -> None:
    rooms = {own for own, _ in files()}
    assert rooms == {name for layer in LAYERS for name in layer}, "say in LAYERS where a new room belongs"
    assert len(rooms) == sum(map(len, LAYERS)), "a room stands in two layers"


def test_imports_run_down() -> None:
    """So the rooms have no circle but those of the list, and nothing stands in the list that is gone."""
    found = against(arrows())
    assert not {arrow: where for arrow, where in found.items() if arrow not in AGAINST}, "an import runs up"
    assert set(AGAINST) <= set(found), "an arrow of the list is gone: delete it there"


def test_an_import_that_runs_up_is_found() -> None:
    assert against({("recipe", "objectives"): ["x"], ("cli", "recipe"): ["y"], ("codecs", "text"): ["z"]}).keys() == {
        ("recipe", "objectives"),
        ("codecs", "text"),
    }


def test_imports_for_types_and_inside_functions_count(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom vidalign import registry\nif TYPE_CHECKING:\n"
        "    from vidalign.context import Batch\ndef f():\n    import vidalign.cli.main\n"
    )
    assert sorted(imports(file)) == ["vidalign.cli.main", "vidalign.context", "vidalign.registry"]
