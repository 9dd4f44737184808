"""What is an extra, and what a recipe says that needs one."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vidalign.engine.deepspeed import _prepare
from vidalign.errors import UserError
from vidalign.recipe import load_recipe

ROOT = Path(__file__).parents[2]


def test_datasets_is_no_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(line.startswith("datasets>") for line in project["dependencies"])
    assert "datasets" not in project["optional-dependencies"] and "deepspeed" in project["optional-dependencies"]
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "vidalign").rglob("*.py")]
    assert not [file for file in texts if "vidalign[datasets]" in file.read_text(encoding="utf-8")]


def test_a_recipe_with_deepspeed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "deepspeed" else plain(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    recipe = load_recipe("world/sft", ["engine.name=deepspeed"])
    (warning,) = [str(one) for one in recipe.warnings if "DeepSpeed" in one.what]
    assert "engine.name" in warning or "override 1" in warning
    assert "install torch first, then: pip install 'vidalign[deepspeed]'" in warning
    assert not [one for one in load_recipe("world/sft").warnings if "DeepSpeed" in one.what]
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"pip install 'vidalign\[deepspeed\]'"):
        _prepare()
