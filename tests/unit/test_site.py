"""The generated pages of the site and its links, without mkdocs: `make docs` builds it in strict mode."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from test_docs import PAGES, ROOT, in_nav

import vidalign
from vidalign import registry
from vidalign.cli import app
from vidalign.recipe import shipped_recipes

HOOK = runpy.run_path(str(ROOT / "docs" / "reference.py"))


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    pages: dict[str, str] = HOOK["pages"]()
    return pages


def test_every_recipe_is_explained(made: dict[str, str]) -> None:
    recipes = [name for name in shipped_recipes() if not name.startswith("twins/")]
    assert {f"reference/recipes/{name}.md" for name in recipes} < made.keys()
    page = made["reference/recipes/wan_1_3b/astrolabe.md"]
    assert "# Candidates per prompt." in page and "group_size: 24  # recipes/wan_1_3b/astrolabe.yaml:" in page
    assert str(ROOT) not in "".join(made.values()), "no local path"
    assert all(f"(recipes/{name}.md)" in made["reference/recipes.md"] for name in recipes)


def test_every_command_and_option_is_listed(made: dict[str, str]) -> None:
    page = made["reference/commands.md"]
    for command in app.registered_commands:
        assert f"## vidalign {command.name}\n" in page
    assert "--from" in page and "The recipe to start from" in page and "## vidalign bench run\n" in page


def test_every_public_name_and_plugin_is_listed(made: dict[str, str]) -> None:
    page = made["reference/python.md"]
    assert all(f"### vidalign.{name}\n" in page for name in vidalign.__all__)
    for kind in registry.KINDS:
        built_in = [name for name, origin in registry.names(kind).items() if origin == "vidalign"]
        assert [name for name in built_in if f"### {name} ({kind})\n" not in page] == []
    assert "- `group_size`: Candidates per prompt." in page


def test_the_navigation_names_pages_that_are_made(made: dict[str, str]) -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert {page for page in in_nav(site["nav"]) if page.startswith("reference/")} <= made.keys()
    assert [file for file in (ROOT / "docs").rglob("*") if "reference" in file.parts[:-1]] == [], "none is committed"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_leaves_the_site(page: Path) -> None:
    """After the hook has led those out of docs/ back into it."""
    place = page.relative_to(ROOT / "docs")
    where: Any = SimpleNamespace(file=SimpleNamespace(src_uri=str(place)))
    text = HOOK["on_page_markdown"](page.read_text(encoding="utf-8"), where, None, None)
    assert "](" + "../" * len(place.parts) not in text
