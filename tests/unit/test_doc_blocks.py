"""Every code block of README and docs: it is run by a test, or what it names is checked without running it."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer
import yaml
from test_docs import PAGES, ROOT, blocks, name
from tiny_clip import save_clip

from vidalign import registry
from vidalign.bench.protocol import load_protocol
from vidalign.cli import app
from vidalign.recipe import read_recipe, shipped_recipes
from vidalign.recipe.load import sections
from vidalign.students.video.presets import preset

COMMAND: Any = typer.main.get_command(app)
RUN_BY = {
    "README.md": "tests/unit/test_readme.py",
    "docs/adding_a_grader.md": "tests/unit/test_doc_blocks.py",
    "docs/adding_a_metric.md": "tests/unit/test_docs.py",
    "docs/adding_a_prompt_source.md": "tests/unit/test_docs.py",
    "docs/adding_a_reward.md": "tests/unit/test_docs.py",
    "docs/adding_a_student.md": "tests/cli/test_third_student.py",
    "docs/adding_a_teacher.md": "tests/unit/test_docs.py",
    "docs/adding_an_objective.md": "tests/unit/test_docs.py",
    "docs/api.md": "tests/unit/test_docs.py",
    "docs/callbacks.md": "tests/unit/test_callbacks.py",
    "docs/index.md": "tests/unit/test_doc_blocks.py",
    "docs/real_metrics.md": "tests/unit/test_doc_blocks.py",
    "docs/real_students.md": "tests/students/test_page.py",
    "docs/rewards.md": "tests/unit/test_docs.py",
    "docs/serving.md": "tests/unit/test_docs.py",
    "docs/testing_a_plugin.md": "tests/unit/test_docs.py",
}
"""Pages with Python, and the test that runs their blocks."""
NEEDS_WEIGHTS = {"docs/language.md": "two lines that open the folder of a run: tests/cli/test_language_export.py"}
"""Pages whose Python is only compiled, and its imports looked up (tests/unit/test_docs.py)."""
PLACEHOLDER = re.compile(r"^(\[.*\]\.*|\.\.\.|[A-Z]{2,}(_[A-Z]+)*)$")
"""Words of a synopsis that stand for a value, such as RECIPE and [KEY=VALUE]..."""
OPEN = {"SIZE", "NAME", "FORM"}


def shell(page: Path) -> Iterator[str]:
    """The commands of a page, one a line; a backslash continues a line, and comments are left out."""
    for language in ("", "sh"):
        for block in blocks(page, language):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                yield line.strip()


COMMANDS = [(name(page), line) for page in PAGES for line in shell(page)]
VIDALIGN = [
    (page, line[line.index("vidalign ") :])
    for page, line in COMMANDS
    if re.match(r"(srun [\w=-]+ )?vidalign [a-z]", line)
]
YAML = [(name(page), number, block) for page in PAGES for number, block in enumerate(blocks(page, "yaml"))]


def test_the_blocks_were_found() -> None:
    assert len(VIDALIGN) > 50 and len(YAML) > 20


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_a_test_runs_the_python_of_a_page(page: Path) -> None:
    if name(page) in NEEDS_WEIGHTS:
        return
    file = ROOT / RUN_BY[name(page)]
    stem = "README" if page.name == "README.md" else page.stem
    assert stem in file.read_text(encoding="utf-8"), f"{file} does not name {page.name}"


def test_the_reward_of_the_first_page_judges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """docs/index.md, as the file that it says."""
    from vidalign.testing import check_reward

    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    (tmp_path / "brightness.py").write_text(blocks(ROOT / "docs" / "index.md", "python")[0])
    registry.load_plugin_file(tmp_path / "brightness.py")
    check_reward("brightness")


def test_the_grader_of_its_page_keeps_its_promises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """docs/adding_a_grader.md, with the test that stands there."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.chdir(tmp_path)
    plugin, test = blocks(ROOT / "docs" / "adding_a_grader.md", "python")
    Path("keywords.py").write_text(plugin)
    values: dict[str, Any] = {}
    exec(test, values)
    values["test_the_grader_keeps_its_promises"]()


def test_the_metric_of_its_page_scores(tmp_path: Path) -> None:
    """docs/real_metrics.md, with a tiny checkpoint in the place of CLIP's."""
    save_clip(tmp_path / "clip", agreeing=True)
    (code,) = blocks(ROOT / "docs" / "real_metrics.md", "python")
    values: dict[str, Any] = {"clips": torch.rand(2, 8, 3, 16, 16), "prompts": ["red ball falls", "blue ball falls"]}
    exec(code.replace("openai/clip-vit-base-patch32", str(tmp_path / "clip")), values)
    said = set(re.findall(r'"(\w+)"', code.rpartition("->")[2]))
    assert {key: score.shape for key, score in values["scores"].items()} == dict.fromkeys(said, torch.Size([2]))


def plugins_of(page: str, folder: Path) -> None:
    """Register what the Python of a page registers, as one file."""
    code = "\n".join(
        block for block in blocks(ROOT / page, "python") if "Trainer(" not in block and "exec(" not in block
    )
    if "@register(" in code and "load_plugin_file(" not in code:
        (folder / "plugin.py").write_text(code)
        registry.load_plugin_file(folder / "plugin.py")


# --- command lines ---


def parsed(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Path and values of a command line, parsed as the command would, and not run."""
    command, path = COMMAND, []
    while getattr(command, "commands", None) is not None:
        assert words and words[0] in command.commands, f"there is no command {' '.join([*path, *words[:1]])!r}"
        command, path, words = command.commands[words[0]], [*path, words[0]], words[1:]
    context = command.make_context(path[-1], list(words))
    return path, context.params


def ready(line: str) -> list[str]:
    """The words of a line without what only stands for something, and without plugin files, which are not there."""
    words = shlex.split(line, comments=True)[1:]
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] == "--plugin":
            kept.pop()
        elif not (word.startswith("[") and word.endswith(("]", "]..."))):
            kept.append(word)
    return [re.sub(r'\$"?\{?\w+\}?"?', "2", word) if "$" in word else word for word in kept]


@pytest.mark.parametrize(("page", "line"), VIDALIGN, ids=[f"{p}: {line[:50]}" for p, line in VIDALIGN])
def test_a_command_line_is_one(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options exist, and the shipped recipe that it names reads with its overrides."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    plugins_of("docs/index.md" if page == "README.md" else page, tmp_path)
    try:
        path, values = parsed(ready(line))
    except click.ClickException as error:
        raise AssertionError(f"{page}: {line} - {error.format_message()}") from None
    except Exception as error:
        if type(error).__module__.startswith("typer."):  # its own copy of click
            raise AssertionError(f"{page}: {line} - {error}") from None
        raise
    recipe = str(values.get("source") or values.get("recipe") or "")
    if recipe in shipped_recipes():
        read_recipe(recipe, values.get("overrides"))
    elif path[0] not in ("list", "bench") and values.get("overrides"):
        base = "qwen3/dopd_math" if "maths" in page else "wan_1_3b/astrolabe"
        overrides = [word for word in values["overrides"] if not PLACEHOLDER.match(word)]
        if not recipe.startswith("recipe"):
            read_recipe(base, overrides)


@pytest.mark.parametrize(
    ("page", "line"), [c for c in COMMANDS if c[1].startswith(("make ", "pip install", "python "))]
)
def test_other_commands_name_what_is_there(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extras in re.findall(r"(?:vidalign|\.)\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= known.keys(), line
    elif words[1] != "-m":
        script = ROOT / words[1]
        foreign = page == "docs/real_metrics.md"  # scripts of the suites themselves
        assert script.is_file() or foreign, line


# --- YAML ---


@pytest.mark.parametrize(("page", "number", "block"), YAML, ids=[f"{p} {n}" for p, n, _ in YAML])
def test_a_block_of_yaml_is_a_recipe_or_says_what_it_is(
    page: str, number: int, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections are laid over a shipped recipe; keys, types and plugins are checked, files need not be there."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    plugins_of(page, tmp_path)
    values, file = yaml.safe_load(block), tmp_path / "block.yaml"
    if "cache" in values:
        file.write_text(block)
        assert preset(str(file)).about
        return
    known = {spec.name for spec in sections()} | {"base"}
    if not set(values) <= known:
        assert page == "docs/adding_a_student.md" and "budget" in values, "a protocol: tests/cli/test_third_student.py"
        assert load_protocol is not None
        return
    language = values.get("student", {}).get("name") == "language" or "chat" in values.get("student", {})
    parent = "tokens/opd" if language or page in ("docs/language.md", "docs/adding_a_grader.md") else "world/astrolabe"
    whole = (
        {"base": parent} | values
        if "base" not in values and not {"student", "objective", "trainer"} <= set(values)
        else values
    )
    file.write_text(json.dumps(whole) if whole is not values else block)
    read_recipe(file)
