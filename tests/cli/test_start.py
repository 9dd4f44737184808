"""What a run is compared with is what its training began with: an adapter to go on from, and in the same arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import vidalign
from test_semi_on_policy import SMALL

from vidalign.build import build_student
from vidalign.errors import UserError
from vidalign.recipe import load_recipe
from vidalign.workflows import evaluate
from vidalign.workflows.export import export_run
from vidalign.workflows.opened import open_run
from vidalign.workflows.scaled import scaled
from vidalign.workflows.start import started_student

NOTHING = ("trainer.steps=1", "trainer.learning_rate=1e-12")
"""A run that changes no weight."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter changes much, two that go on from it and learn nothing, and one with a start in bf16."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "recipe.yaml").write_text(SMALL, encoding="utf-8")
    begun = f"student.adapter={{rank: 2, alpha: 4, start: {folder}/first/adapter}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidalign.workflows.evaluate.evaluate_run", lambda folder: [])
        train(folder, "first", "trainer.steps=2", "trainer.learning_rate=0.05")
        train(folder, "semi", begun, *NOTHING)
        train(folder, "on", begun, *NOTHING)
        train(folder, "low", "student.dtype=bfloat16", "engine.precision=bf16", *NOTHING)
    return folder


def train(folder: Path, run: str, *arguments: str) -> None:
    assert vidalign("train", str(folder / "recipe.yaml"), "--run", str(folder / run), *arguments) == 0


def distance(first: Any, second: Any) -> float:
    """The largest difference of two state dicts."""
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = open_run(folder / run).student.state_dict()
    return {name: value.cpu() for name, value in state.items()}


def test_the_start_has_the_adapter_that_training_goes_on_from(folder: Path) -> None:
    recipe = load_recipe(folder / "on" / "recipe.yaml", [])
    start = started_student(recipe).state_dict()
    assert distance(start, weights(folder, "on")) < 1e-6 and distance(start, weights(folder, "first")) < 1e-6
    assert distance(start, build_student(recipe).state_dict()) > 0.01, "the adapter changes something"


def test_scales_begin_at_the_start(folder: Path) -> None:
    made = open_run(folder / "on").student
    scaled(folder / "on").put(made, 0.0)
    assert distance(made.state_dict(), weights(folder, "on")) < 1e-6


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_merge_has_what_both_began_with_once(folder: Path, scale: float, tmp_path: Path) -> None:
    runs = ("--semi", str(folder / "semi"), "--on-policy", str(folder / "on"))
    assert vidalign("merge", *runs, "--out", str(tmp_path / "m"), "--scale", str(scale)) == 0
    assert distance(weights(tmp_path, "m"), weights(folder, "on")) < 1e-5


def test_an_export_measures_the_update_alone(folder: Path, tmp_path: Path) -> None:
    done = export_run(folder / "on", tmp_path / "out.safetensors", "bfloat16")
    assert done.note == "the weights are those that training began with" or "0.0 %" not in done.note


@pytest.mark.parametrize("run", ["on", "low"])
def test_a_run_that_learned_nothing_has_no_gain(run: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both students are judged in one arithmetic and in parts of one size."""
    seen = []
    monkeypatch.setattr(evaluate, "sampler_of", recorded(evaluate.sampler_of, seen))
    rows = evaluate.evaluate_run(folder / run, ["trainer.rollout_batch=1"])
    assert rows and all(row.difference == pytest.approx(0, abs=1e-6) for row in rows)
    assert len(seen) == 2 and seen[0] == seen[1] == (torch.float32, 1)


def recorded(sampler_of: Any, seen: list[Any]) -> Any:
    """`sampler_of` that keeps the dtype and the rollout batch of its students."""

    def record(recipe: Any, made: Any) -> Any:
        seen.append((made.weight_dtype, made.rollout_batch))
        return sampler_of(recipe, made)

    return record


def test_runs_that_sample_differently_are_not_merged(folder: Path, tmp_path: Path) -> None:
    from vidalign.workflows.merge import merge_runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidalign.workflows.evaluate.evaluate_run", lambda folder: [])
        train(folder, "fewer", "student.sampler={sigmas: [1.0, 0.5]}", *NOTHING)
    with pytest.raises(UserError, match=r"the two runs sample differently - .*sampler: "):
        merge_runs(folder / "first", folder / "fewer", tmp_path / "m", (1.0,))
