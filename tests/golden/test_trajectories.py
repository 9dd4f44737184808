"""Every shipped recipe still trains as recorded in tests/golden/trajectories (see trajectories.py).

Here: every recipe on the plain engine, and one recipe of every family in ZeRO-2 on two processes. `make golden` and the
slow tests run the rest.
"""

from __future__ import annotations

from typing import Any

import pytest
from trajectories import (
    FILES,
    PROCESSES,
    Launch,
    against_file,
    is_twin,
    may,
    representatives,
    shipped,
    trajectories,
)

QUICK = {("plain", 1): shipped(), ("zero2", 2): representatives("zero2")}
CASES = [
    (engine, n, recipe)
    for engine in PROCESSES
    for n in PROCESSES[engine]
    for recipe in shipped()
    if may(recipe, engine)
]


class Runs:
    """Trajectories of the chosen cases; those on the same processes run together when the first one is asked for."""

    def __init__(self, chosen: list[tuple[str, int, str]]) -> None:
        self.chosen = chosen
        self.done: dict[tuple[str, int], dict[str, Any]] = {}

    def result(self, engine: str, processes: int, recipe: str) -> dict[str, Any]:
        where = engine, processes
        if where not in self.done:
            recipes = [name for *there, name in self.chosen if tuple(there) == where]
            parts = [recipes]  # two processes start once
            if processes == 1:  # the kernels of twins are slower
                parts = [[name for name in recipes if is_twin(name) == twin] for twin in (False, True)]
            started = [Launch(engine, processes, tuple(part)) for part in parts if part]
            self.done[where] = {name: one for launch in started for name, one in trajectories(launch).items()}
        return self.done[where][recipe]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Runs:
    tests = [item for item in request.session.items if getattr(item, "originalname", "") == "test_trajectory"]
    return Runs([item.callspec.params["case"] for item in tests])  # type: ignore[attr-defined]


def _case(engine: str, processes: int, recipe: str) -> Any:
    marks = [] if recipe in QUICK.get((engine, processes), ()) else [pytest.mark.slow]
    return pytest.param((engine, processes, recipe), marks=marks, id=f"{recipe}-{engine}-{processes}")


@pytest.mark.parametrize("case", [_case(*case) for case in CASES])
def test_trajectory(case: tuple[str, int, str], runs: Runs) -> None:
    engine, processes, recipe = case
    assert against_file(recipe, engine, processes, runs.result(*case)) == []


@pytest.mark.parametrize("engine", PROCESSES)
def test_every_recipe_has_a_trajectory(engine: str) -> None:
    """And no file is left of a recipe that is gone."""
    written = {path.relative_to(FILES / engine).with_suffix("").as_posix() for path in (FILES / engine).rglob("*.json")}
    able = {recipe for recipe in shipped() if may(recipe, engine)}
    missing = " ".join(sorted(able - written))
    assert not missing, f"record them with `python tests/golden/trajectories.py record {missing}`"
    assert written == able
