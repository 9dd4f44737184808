"""Working folders with a recipe, and a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import BRIGHTNESS, FINISHED, RECIPE, vidalign

from vidalign import registry


@pytest.fixture
def recipe_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def brightness(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What adds a reward of one's own to the recipe."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    Path("brightness.py").write_text(BRIGHTNESS, encoding="utf-8")
    return ("rewards.brightness=1", "--plugin", "brightness.py")


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the evaluation after training."""
    monkeypatch.setattr("vidalign.workflows.evaluate.evaluate_run", lambda folder: [])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a finished run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert vidalign("train", str(folder / "recipe.yaml"), *FINISHED, "--run", str(folder / "run")) == 0
    return folder
