"""`vidalign list KIND`: names of recipes or plugins, and what each is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidalign import registry
from vidalign.cli.options import Plugins
from vidalign.errors import UsageError, nearest
from vidalign.plugin_source import describe

KINDS = ("recipes", "protocols", "presets", *registry.KINDS)


def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of: {', '.join(KINDS)}.")],
    plugin: Plugins = None,
) -> None:
    """List recipes, protocols or plugins of a kind, with what each is and the paper behind it."""
    if kind not in KINDS:
        close = nearest(kind, KINDS)
        fix = f"did you mean {close!r}?" if close else f"one of {', '.join(KINDS)}"
        raise UsageError(f"there is nothing called {kind!r} to list", fix=fix)
    rows = {"recipes": _recipes, "protocols": _protocols, "presets": _presets}.get(kind, lambda: _plugins(kind))()
    if not rows:
        typer.echo(f"no {kind}")
        return
    width = max(map(len, rows))
    for name, about in rows.items():
        typer.echo(f"{name:<{width}}  {about}".rstrip())


def _plugins(kind: str) -> dict[str, str]:
    """Every plugin with one line from its source, of foreign ones with their distribution or file; none is imported."""
    rows = {}
    for name, origin in registry.names(kind).items():
        rows[name] = " ".join(filter(None, [describe(kind, name), f"({origin})" if origin != "vidalign" else ""]))
    return rows


def _recipes() -> dict[str, str]:
    """Every shipped recipe with the first sentence of its header."""
    from vidalign.recipe import shipped_recipes

    return _first_sentences(shipped_recipes())


def _protocols() -> dict[str, str]:
    """Every shipped protocol with the first sentence of its header."""
    from vidalign.bench.shipped import shipped_protocols

    return _first_sentences(shipped_protocols())


def _presets() -> dict[str, str]:
    """Every family of public checkpoints that `vidalign import` knows."""
    from vidalign.students.weights import kinds

    return {name: about for kind in kinds().values() for name, about in kind.presets().items()}


def _first_sentences(files: dict[str, Path]) -> dict[str, str]:
    from vidalign.recipe import read_header

    headers = {name: read_header(path).partition("Run:")[0] for name, path in files.items()}
    return {name: " ".join(header.split()).partition(". ")[0] for name, header in headers.items()}
