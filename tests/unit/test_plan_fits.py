"""`vidalign plan`: the table, what fits, several GPUs, and what cannot be planned."""

from __future__ import annotations

import pytest
import torch

from vidalign.cli import main
from vidalign.engine.config import EngineConfig
from vidalign.errors import DoesNotFit, UsageError
from vidalign.recipe import load_recipe
from vidalign.workflows import fits
from vidalign.workflows.plan import Plan, divided

HELD = {"frozen weights": 300, "trained weights": 100, "optimiser": 200}
PLAN = Plan(HELD, {"rollout": 1000, "loss": 1500, "update": 900}, {"context": 50, "gradients": 100})


def run(*words: str) -> object:
    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    return leaving.value.code


def test_the_peak_is_made_of_what_is_held_and_what_the_phase_adds() -> None:
    assert PLAN.at == "loss" and PLAN.peak == 1500
    assert sum(PLAN.held.values()) + sum(PLAN.largest_phase.values()) == PLAN.peak
    assert PLAN.largest_phase == {"context": 50, "gradients": 100, "tensors of `loss`": 750}


@pytest.mark.parametrize(
    ("engine", "phases"),
    [
        (EngineConfig(), {"rollout": 1000, "loss": 1500, "update": 1100}),
        (EngineConfig("deepspeed", 0), {"rollout": 1000, "loss": 1500, "update": 900}),
        (EngineConfig("deepspeed", 1), {"rollout": 850, "loss": 1350, "update": 750}),
        (EngineConfig("deepspeed", 2), {"rollout": 850, "loss": 1275, "update": 675}),
        (EngineConfig("deepspeed", 3), {"rollout": 850, "loss": 975, "update": 375}),
        (EngineConfig("deepspeed", 2, offload="optimizer"), {"rollout": 800, "loss": 1225, "update": 625}),
    ],
)
def test_four_processes_share_what_their_engine_divides(engine: EngineConfig, phases: dict[str, int]) -> None:
    assert divided(PLAN, engine, 4).phases == phases
    assert divided(PLAN, EngineConfig("deepspeed", 3), 1).phases == PLAN.phases


def test_gpus_by_name_and_by_size() -> None:
    assert fits.memory_of("80GB") == 80e9 and fits.memory_of("H100") == fits.memory_of("h100") == 81559 * 2**20
    with pytest.raises(UsageError, match="did you mean 'h100'"):
        fits.memory_of("h10")


def test_what_does_not_fit_is_refused_with_its_cheapest_changes() -> None:
    recipe = load_recipe("world/astrolabe")
    large = Plan(HELD, {"loss": 10**11}, {"context": 0, "gradients": 0})
    with pytest.raises(DoesNotFit, match=r"100.* student.checkpointing=true, then trainer.micro_batch=12") as error:
        fits.check_fits(recipe, large, "h100", 1)
    assert error.value.exit_code == 4
    fits.check_fits(recipe, large, "h200", 1)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["world/astrolabe", "trainer.prompts_per_step=2", "trainer.micro_batch=2"]
    main_code = run("plan", *small, "--gpu", "2.01GB")
    out, err = capsys.readouterr()
    assert main_code == 4 and "trained weights" in out and "largest item" in out and "a step needs 2.1" in err
    assert run("plan", *small, "--gpu", "h100") == 0
    assert run("plan", *small, "--gpu", "h1000") == 2


@pytest.mark.parametrize(("recipe", "why"), [("tokens/dopd", "student.name"), ("world/gan", "discriminator")])
def test_what_cannot_be_planned_is_said(recipe: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", recipe) == 3
    assert why in capsys.readouterr().err


def test_running_out_of_memory_shows_the_plan() -> None:
    recipe = load_recipe("world/astrolabe", ["trainer.prompts_per_step=1", "trainer.micro_batch=2"])
    with pytest.raises(DoesNotFit, match="out of memory") as error, fits.explaining_memory(recipe, 1):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")
    assert "peak of a phase" in str(error.value) and "tried to allocate 20 GiB" in str(error.value)
