"""docs/methods/index.md: the defaults of the four methods beside their papers' values, as the code has them."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from vidalign import registry
from vidalign.engine.config import AdapterConfig
from vidalign.recipe.explain import field_docs
from vidalign.recipe.schema import TrainerConfig
from vidalign.rewards.discriminators.base import DiscriminatorConfig

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "index.md"
METHODS = ("afd", "ar_copo", "astrolabe", "dopd")
SECTIONS = {
    **{name: registry.get("objectives", name).Config for name in METHODS},
    "discriminator": DiscriminatorConfig,
    "student.adapter": AdapterConfig,
    "trainer": TrainerConfig,
}
ROW = re.compile(r"^\| `([\w.]+)` `([\w.]+)` \| (\S+) \| (\S+) \| (.*?) ?\|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def default_of(section: str, key: str) -> Any:
    value = SECTIONS[section]()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def number(text: str) -> Any:
    """As a recipe would read it."""
    return None if text == "null" else yaml.safe_load(text)


def test_the_table_was_read() -> None:
    assert len(ROWS) > 35 and {section for section, *_ in ROWS} == set(SECTIONS)


@pytest.mark.parametrize(("section", "key", "default", "paper", "reason"), ROWS, ids=[f"{s}.{k}" for s, k, *_ in ROWS])
def test_the_default_is_that_of_the_code_and_a_difference_has_its_reason(
    section: str, key: str, default: str, paper: str, reason: str
) -> None:
    assert number(default) == default_of(section, key)
    if paper not in ("open", default):
        assert len(reason) > 20, "why it departs"


def named_settings() -> list[tuple[str, str]]:
    """Settings of the four methods whose docstring speaks of the paper."""
    found = []
    for name in METHODS:
        config = SECTIONS[name]()
        parts = [("", config)] + [
            (f"{f.name}.", getattr(config, f.name)) for f in fields(config) if is_dataclass(getattr(config, f.name))
        ]
        for prefix, part in parts:
            docs = field_docs(type(part))
            found += [(name, prefix + key) for key, doc in docs.items() if re.search(r"\bpaper\b|released", doc)]
    return found


def test_every_setting_that_speaks_of_its_paper_stands_in_the_table() -> None:
    listed = {(section, key) for section, key, *_ in ROWS}
    assert named_settings() and [one for one in named_settings() if one not in listed] == []
