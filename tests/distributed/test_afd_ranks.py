"""AFD on two processes, with the discriminator in an engine of its own, is AFD on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launch as launcher
import pytest

ENGINES = ["plain", "zero2", "zero3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("afd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "WORKER", Path(__file__).with_name("afd_worker.py"))
        launcher.launch(1, folder / "one", "plain", "fp32")
        launcher.launch(2, folder / "two", *ENGINES)
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_train_as_one(engine: str, folder: Path) -> None:
    """Both networks, the logged numbers and the running accuracy; 3 of 10 prompts are held out, so the ranks train on
    different numbers of pairs."""
    one: Any = launcher.results(folder / "one", "plain" if engine == "plain" else "fp32")
    two: Any = launcher.results(folder / "two", engine)
    tolerance = 1e-9 if engine == "plain" else 2e-4
    assert one["weights"].keys() == two["weights"].keys() and any(
        k.startswith("discriminator.") for k in one["weights"]
    )
    for name, values in one["weights"].items():
        assert two["weights"][name] == pytest.approx(values, rel=tolerance, abs=tolerance), name
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert two["state"]["discriminator"]["pairs"] == pytest.approx(one["state"]["discriminator"]["pairs"])
    assert one["state"]["discriminator"]["pairs"] > 0
