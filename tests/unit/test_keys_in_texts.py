"""Keys of a recipe that error texts, field docstrings, docs and recipe headers name stand in the schema."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from vidalign import registry
from vidalign.bench.protocol import ProtocolSections
from vidalign.recipe.schema import Part, Sections
from vidalign.students.language_config import LanguageSpec
from vidalign.students.video import CachePolicy, Sampler, VideoStudentSpec

ROOT = Path(__file__).parents[2]
FREE = {
    "student.init": [VideoStudentSpec, LanguageSpec],
    "student.cache": [CachePolicy],
    "student.sampler": [Sampler],
    "data.prompts": [registry.get("prompts", "tokens").Config],
}
"""Sections that are plain mappings in the schema, and what reads them."""
MISTAKEN = ("checkpoint", "checkpoints", "optimizer", "sampler", "adapter")
"""Words that look like sections and are none."""
ATTRIBUTES = ("sampler.sigmas", "sampler.first_sigmas", "sampler.rolling", "sampler.solver", "sampler.many_steps")
"""Attributes of a student that its teacher shares, and keys of a preset; no keys of a recipe."""
FILES = ("json", "jsonl", "safetensors", "yaml", "pt", "py", "html", "md")
SECTIONS = "|".join([*MISTAKEN, *(f.name for f in fields(Sections)), "budget", "health"])
KEY = re.compile(rf"(?<![\w./-])((?:{SECTIONS})(?:\.[a-z_]\w*)+)")


def exists(hint: Any, keys: list[str], path: str = "") -> bool:
    """Whether a value of type `hint` has the nested key `keys`."""
    kinds = [kind for kind in (get_args(hint) or [hint]) if kind is not type(None)]
    if not keys:
        return True
    if path in FREE:
        return any(exists(kind, keys) for kind in FREE[path])
    if get_origin(hint) is dict:
        return get_args(hint)[1] is Any or exists(get_args(hint)[1], keys[1:])
    return any(is_dataclass(kind) and has_field(kind, keys, path) for kind in kinds)


def has_field(kind: Any, keys: list[str], path: str) -> bool:
    spec = next((f for f in fields(kind) if f.name == keys[0]), None)
    if spec is None:
        return False
    if "plugin" in spec.metadata:
        choice = exists(spec.metadata["choice"], keys[1:], keys[0])
        return choice or in_a_plugin(spec.metadata["plugin"], keys[1:], keys[0])
    if keys[0] == "rewards" and kind is Sections:
        return keys[1] in registry.names("rewards")
    return exists(get_type_hints(kind)[keys[0]], keys[1:], f"{path}.{keys[0]}".lstrip("."))


def in_a_plugin(kind: str, keys: list[str], path: str = "") -> bool:
    return any(exists(registry.get(kind, name).Config, keys, path) for name in registry.names(kind))


def in_the_schema(key: str) -> bool:
    """Whether a recipe or a protocol has the key; an objective of several has the keys of one."""
    keys = key.split(".")
    if keys[0] == "objectives" and exists(Part, keys[2:]) | in_a_plugin("objectives", keys[2:]):
        return True
    return exists(Sections, keys) or exists(ProtocolSections, keys)


def texts() -> Iterator[tuple[str, str]]:
    """(file, text) of every string in the package, of the pages, and of the comments in recipes and protocols."""
    for file in (ROOT / "vidalign").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        yield page.name, re.sub(r"^```python\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for file in [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "benchmarks" / "protocols").glob("*.yaml")]:
        comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("#")]
        yield str(file.relative_to(ROOT)), "\n".join(comments)


def test_every_key_that_a_text_names_stands_in_the_schema() -> None:
    named = [(key, where) for where, text in texts() for key in KEY.findall(text)]
    named = [(key, where) for key, where in named if key.rpartition(".")[2] not in FILES and key not in ATTRIBUTES]
    assert len(named) > 200, "the texts were found"
    assert [f"{where}: {key}" for key, where in sorted(named) if not in_the_schema(key)] == []


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("trainer.keep", True),
        ("checkpoint.keep_last", False),
        ("objective.kl.mode", True),
        ("objective.kl.modes", False),
        ("student.init.codec.kind", True),
        ("student.codec.kind", False),
        ("student.adapter.targets", True),
        ("objectives.first.weight", True),
        ("rewards.movement", False),
        ("budget.amount", True),
        ("student.cache.sink_decay", True),
        ("trainer.steps.more", False),
    ],
)
def test_the_schema_is_read_to_its_depth(key: str, there: bool) -> None:
    assert in_the_schema(key) is there
