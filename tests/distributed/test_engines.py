"""Every engine trains the same, resumes to the bit and survives what goes wrong on one rank only.

Four launches in all, because starting processes costs more than what they do: one rank, two ranks, two ranks of which
one is killed while saving, two ranks that resume.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from launch import launch, results

ENGINES = ["plain", "zero0", "zero1", "zero2", "zero3"]
FP32 = [f"{engine}-{kind}" for engine in ENGINES for kind in ("lora", "full")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    launch(1, folder / "one", "losses")
    launch(2, folder / "two", "losses", "straight", "behaviour")
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> Any:
    return results(folder / "one", "losses")


@pytest.fixture(scope="module")
def two(folder: Path) -> Any:
    return results(folder / "two", "losses")


@pytest.fixture(scope="module")
def behaviour(folder: Path) -> Any:
    return results(folder / "two", "behaviour")


@pytest.fixture(scope="module")
def resumed(folder: Path) -> Any:
    codes = launch(2, folder / "two", "doomed")
    assert codes[1] == -signal.SIGKILL, codes
    launch(2, folder / "two", "resumed")
    return results(folder / "two", "resumed")


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    for step, (a, b) in enumerate(zip(found["steps"], expected["steps"], strict=True)):
        assert a == pytest.approx(b, rel=tolerance, abs=1e-9), f"step {step}"
    assert found["weights"].keys() == expected["weights"].keys()
    for name, values in expected["weights"].items():
        assert found["weights"][name] == pytest.approx(values, rel=0, abs=tolerance), name


@pytest.mark.parametrize("name", [*FP32, "zero2-lora-offload", "zero3-full-offload"])
def test_two_ranks_train_as_one_plain_process(name: str, one: Any, two: Any) -> None:
    """SGD in fp32: losses, gradient norms, learning rates and every weight set. Measured: 1.3e-7."""
    assert_same(two[name], one[f"plain-{name.split('-')[1]}"], 1e-6)


@pytest.mark.parametrize("engine", ["plain", "zero0", "zero2", "zero3"])
def test_bf16_is_the_same_bf16_everywhere(engine: str, one: Any, two: Any) -> None:
    """fp32 adapters, bf16 compute: as close to one plain process as fp32 is, and not fp32. Measured: 4e-8."""
    assert_same(two[f"{engine}-bf16"], one["plain-bf16"], 1e-4)
    difference = abs(one["plain-bf16"]["steps"][4]["student/loss"] - one["plain-lora"]["steps"][4]["student/loss"])
    assert 1e-4 < difference < 1e-2


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_ranks_do_not_matter_in_float64(kind: str, one: Any, two: Any) -> None:
    """AdamW, plain. Measured: 3e-16."""
    assert_same(two[f"fp64-{kind}"], one[f"fp64-{kind}"], 1e-13)


def test_training_moves_the_loss(one: Any) -> None:
    """Otherwise equal trajectories would say little; and LoRA and full fine-tuning must differ."""
    lora, full = (one[f"plain-{kind}"]["steps"] for kind in ("lora", "full"))
    assert abs(lora[4]["student/loss"] - lora[0]["student/loss"]) > 0.01
    assert abs(lora[4]["student/loss"] - full[4]["student/loss"]) > 0.01


@pytest.mark.parametrize("name", FP32)
def test_resume_is_exact(name: str, folder: Path, resumed: Any) -> None:
    """2N steps are N, a new process, and N: to the bit; for zero2-lora after a save that was killed."""
    straight = results(folder / "two", "straight")[name]
    assert resumed[name]["first"] == 3
    assert resumed[name]["steps"] == straight["steps"][3:]
    assert resumed[name]["weights"] == straight["weights"]


@pytest.mark.parametrize("name", FP32)
def test_gathered_rollouts_are_the_same(name: str, behaviour: Any) -> None:
    assert all(behaviour[name]["gathered"])


@pytest.mark.parametrize("name", FP32)
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, behaviour: Any) -> None:
    assert behaviour[name]["nonfinite"] == {"same": True, "healthy": True, "counted": [1, 1, 1, 0]}


@pytest.mark.parametrize("name", FP32)
def test_the_norm_of_the_weights_is_that_of_whole_ones(name: str, behaviour: Any) -> None:
    found, whole = behaviour[name]["norms"]
    assert found == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", FP32)
def test_full_disk_on_one_rank(name: str, folder: Path, behaviour: Any) -> None:
    """Both ranks get the error, nobody hangs, and the checkpoint of before is intact."""
    for rank in (0, 1):
        error, steps, damage, entries = results(folder / "two", "behaviour", rank)[name]["full_disk"]
        assert "step 2 was not saved; the older ones are intact" in error
        assert "File too large" in error or "as on a full disk" in error
        assert (steps, damage, entries) == ([1], "", ["step-00000001"])


def test_unequal_micro_batches_are_refused(behaviour: Any) -> None:
    assert "number of micro-batches differs between processes: [0, 1]" in behaviour["unequal"]


def test_another_number_of_processes_is_refused(folder: Path, resumed: Any) -> None:
    launch(1, folder / "two", "alone")
    errors = results(folder / "two", "alone")
    assert len(errors) == 8
    assert all("checkpoint of 2 processes, run of 1" in e and "resume with 2 processes" in e for e in errors)
