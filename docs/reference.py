"""The reference pages of the site: recipes as `show --explain` prints them, commands, and Python from its docstrings.

A hook of mkdocs (`mkdocs.yml`): the pages exist in the built site only. ``python docs/reference.py FOLDER`` writes them
as files.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import typer

import vidalign
from vidalign import registry
from vidalign.cli import app
from vidalign.recipe import read_recipe, shipped_recipes
from vidalign.recipe.explain import field_docs, render

ROOT = Path(__file__).parents[1]
MEASURED = "benchmarks/README.md"
"""The one page that lies outside of docs/."""
CONTRACTS = {
    "vidalign.objectives.base": ("Objective", "Experience", "Phase", "LossOut"),
    "vidalign.rewards.base": ("Reward", "ScoreRequest", "TrainableReward"),
    "vidalign.evaluation.metrics.base": ("Metric",),
    "vidalign.data.source": ("PromptSource",),
    "vidalign.callbacks": ("Callback", "Training"),
    "vidalign.tracking.base": ("TrackerPlugin",),
    "vidalign.students.video.student": ("VideoStudent",),
    "vidalign.students.language": ("LanguageStudent",),
    "vidalign.trainer": ("Trainer",),
}
"""Classes that a user subclasses or holds."""


def pages() -> dict[str, str]:
    """Every generated page by its place in the site."""
    recipes = {name: path for name, path in shipped_recipes().items() if not name.startswith("twins/")}
    made = {f"reference/recipes/{name}.md": recipe_page(name) for name in recipes}
    lines = [f"- [`{name}`](recipes/{name}.md): {first_sentence(name)}" for name in recipes]
    made["reference/recipes.md"] = "\n".join(["# Every recipe, explained\n", *lines, ""])
    made["reference/commands.md"] = commands_page()
    made["reference/python.md"] = python_page()
    return made


def first_sentence(name: str) -> str:
    """The first sentence of a recipe's header."""
    return " ".join(read_recipe(name).header.split()).partition(". ")[0]


def recipe_page(name: str) -> str:
    """A recipe with every value, what it means and where it was written."""
    recipe = read_recipe(name)
    body = render(recipe, explain=True).replace(f"{ROOT}/", "")
    return f"# {name}\n\n```text\n{recipe.header}\n```\n\n```yaml\n{body}```\n"


def commands_page() -> str:
    """The help of every command."""
    parts = ["# Commands in full\n"]

    def visit(command: Any, names: list[str]) -> None:
        context = command.make_context(names[-1], [], resilient_parsing=True)
        context.info_name = " ".join(names)
        if getattr(command, "commands", None) is None:
            parts.append(f"## {' '.join(names)}\n\n{command.help or ''}\n\n```text\n{usage(command, names)}```\n")
            return
        for name, child in command.commands.items():
            visit(child, [*names, name])

    visit(typer.main.get_command(app), ["vidalign"])
    return "\n".join(parts)


def usage(command: Any, names: list[str]) -> str:
    """Arguments and options of a command with their help, one a line."""
    lines = []
    for parameter in command.params:
        option = parameter.param_type_name == "option"
        name = ", ".join(parameter.opts) if option else parameter.metavar or str(parameter.name).upper()
        default = "" if parameter.default in (None, False, [], ()) or callable(parameter.default) else parameter.default
        lines.append(f"{name:<24} {getattr(parameter, 'help', '') or ''}{f' (default {default})' if default else ''}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def python_page() -> str:
    """Public names, the contracts that plugins subclass, and the settings of every built-in plugin."""
    parts = ["# Python in full\n", "What is stable is on [Python](../api.md).\n", "## vidalign\n"]
    parts += [entry(f"vidalign.{name}", getattr(vidalign, name)) for name in vidalign.__all__]
    for module, names in CONTRACTS.items():
        parts.append(f"## {module}\n")
        home = __import__(module, fromlist=["*"])
        for name in names:
            parts.append(class_entry(getattr(home, name)))
    for kind in registry.KINDS:
        parts.append(f"## Settings of {kind}\n")
        parts += [settings_of(kind, name) for name, origin in registry.names(kind).items() if origin == "vidalign"]
    return "\n".join(parts)


def entry(name: str, value: Any) -> str:
    """A name with its signature and docstring."""
    try:
        signature = str(inspect.signature(value)).replace("'", "")
    except (TypeError, ValueError):
        signature = ""
    return f"### {name}\n\n```python\n{name}{signature}\n```\n\n```text\n{inspect.getdoc(value) or ''}\n```\n"


def class_entry(cls: type) -> str:
    """A class with its own public methods."""
    methods = [
        (name, value)
        for name, value in vars(cls).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__doc__
    ]
    lines = [
        f"{name}{inspect.signature(value)}\n    {inspect.getdoc(value)}".replace("\n", "\n    ")
        for name, value in methods
    ]
    body = "\n\n".join([inspect.getdoc(cls) or "", *lines])
    return f"### {cls.__name__}\n\n```text\n{body}\n```\n"


def settings_of(kind: str, name: str) -> str:
    """The settings of a plugin, each with what it means."""
    config = getattr(registry.get(kind, name), "Config", None)
    rows = [f"- `{key}`: {doc}" for key, doc in (field_docs(config) if config else {}).items()]
    return "\n".join([f"### {name} ({kind})\n", *(rows or ["No settings."]), ""])


# --- hooks of mkdocs ---


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and the measurements, which lie beside their results."""
    from mkdocs.structure.files import File

    for place, content in {**pages(), MEASURED: (ROOT / MEASURED).read_text(encoding="utf-8")}.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that lead out of docs/ in the repository lead to the same page inside the site, or to its folder's name."""
    up = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace(f"]({up}../{MEASURED}", f"]({up}{MEASURED}")
    return re.sub(r"\[([^]]+)\]\((?:\.\./)+examples/[^)]*\)", r"`\1`", markdown)


if __name__ == "__main__":
    for place, content in pages().items():
        file = Path(sys.argv[1]) / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
