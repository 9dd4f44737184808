"""Every shipped recipe still trains as recorded in tests/golden/trajectories (see trajectories.py)."""

from __future__ import annotations

from typing import Any

import pytest
from trajectories import FILES, against_file, launches, may, shipped, trajectories

ENGINES = ("plain",)


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Trajectories of the recipes whose tests were chosen, on the plain engine and one process."""
    tests = [item for item in request.session.items if getattr(item, "originalname", "") == "test_plain"]
    chosen = [item.callspec.params["recipe"] for item in tests]  # type: ignore[attr-defined]
    return {k: v for launch in launches(chosen, "plain", 1) for k, v in trajectories(launch).items()}


@pytest.mark.parametrize("recipe", shipped())
def test_plain(recipe: str, plain: dict[str, Any]) -> None:
    assert against_file(recipe, "plain", plain[recipe]) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_every_recipe_has_a_trajectory(engine: str) -> None:
    """A new recipe is recorded by `python tests/golden/trajectories.py record RECIPE`."""
    written = {str(path.relative_to(FILES / engine).with_suffix("")) for path in (FILES / engine).rglob("*.json")}
    assert written == {recipe for recipe in shipped() if may(recipe, engine)}
