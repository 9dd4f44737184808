"""Teachers on another device, in host memory, or in another type: where weights are, and that results stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_objective_helpers import collect, make
from objective_helpers import accumulate

from vidalign.context import TrainContext
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.base import Phase
from vidalign.recipe import load_recipe
from vidalign.teachers.placement import check_device

NAMES = ("opd", "gkd", "dopd")


def step(folder: Path, name: str, *overrides: str) -> tuple[float, dict[str, Any], TrainContext]:
    objective, ctx = make(folder, name, *overrides)
    data = collect(objective, ctx)
    loss, gradient, _ = accumulate(objective, ctx, data, Phase(), 4)
    return loss, gradient, ctx


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("override", ["teacher.offload=true", "teacher.device=cpu", "teacher.dtype=float64"])
def test_results_are_those_of_a_teacher_that_stays(name: str, override: str, tmp_path: Path) -> None:
    """Bit for bit; float64 is what the engine computes in here."""
    loss, gradient, _ = step(tmp_path, name)
    other, same, ctx = step(tmp_path, name, override)
    assert other == loss and all(torch.equal(gradient[key], same[key]) for key in gradient)
    assert (ctx.teacher.placement.weights.moves > 0) == (override == "teacher.offload=true")


def test_weights_come_once_a_pass_and_rest_afterwards(tmp_path: Path) -> None:
    """Micro-batches of 4 of 12 samples. opd: a visit each. dopd: one to score all, then the head each time."""
    for name, moves in (("opd", 3), ("dopd", 1 + 3)):
        _, _, ctx = step(tmp_path, name, "teacher.offload=true")
        placement = ctx.teacher.placement
        assert placement.weights.moves == moves
        network = ctx.roles._frozen["teacher"].network
        rests = {id(one): home for one, home in placement.weights._home.values()}
        assert all(p.data_ptr() == rests[id(p)].data_ptr() for p in network.parameters()), "all are at rest"
        assert not placement.weights._held


def test_what_computes_is_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rests is corrupted: only weights that were brought give the loss, and inner visits take nothing away."""
    loss, _, _ = step(tmp_path, "opd")
    objective, ctx = make(tmp_path, "opd", "teacher.offload=true")
    placement, network = ctx.teacher.placement, ctx.roles._frozen["teacher"].network
    good = {home.data_ptr(): home.clone() for _, home in placement.weights._home.values()}
    for _, home in placement.weights._home.values():
        home.fill_(torch.nan)
    monkeypatch.setattr(placement.weights, "_copy", lambda rests: good[rests.data_ptr()].clone())
    assert accumulate(objective, ctx, collect(objective, ctx), Phase(), 4)[0] == loss
    with placement.resident():
        with placement.resident(head=True):
            pass
        assert network.head_weight.isfinite().all()
    with placement.resident(head=True):
        assert network.head_weight.isfinite().all()
        assert network.model.model.layers[0].mlp.up_proj.weight.isnan().all(), "the head comes alone"
    assert network.head_weight.isnan().all()


def test_a_failure_leaves_the_weights_at_rest(tmp_path: Path) -> None:
    _, _, ctx = step(tmp_path, "opd", "teacher.offload=true")
    placement = ctx.teacher.placement
    with pytest.raises(ValueError, match="broken"), placement.resident():
        raise ValueError("broken")
    assert not placement.weights._held and all(
        one.data_ptr() == home.data_ptr() for one, home in placement.weights._home.values()
    )


def test_the_type_is_the_teachers_own(tmp_path: Path) -> None:
    loss, gradient, _ = step(tmp_path, "opd")
    low, other, ctx = step(tmp_path, "opd", "teacher.dtype=bfloat16")
    network = ctx.roles._frozen["teacher"].network
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert ctx.teacher.model.project(torch.ones(1, 16, dtype=torch.float64)).dtype == torch.bfloat16
    assert low != loss and low == pytest.approx(loss, rel=0.05)
    assert all(one.dtype == torch.float64 for one in other.values())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.device=gpu", "the teacher cannot lie on 'gpu'"),
        ("teacher.device=cuda:x", "it is none of cpu, cuda and cuda:N"),
        ("teacher.dtype=int8", "teacher.dtype"),
        (
            "teacher={name: language, path: tokens/teacher, device: cpu, offload: true}",
            "teacher.offload has no use here",
        ),
    ],
)
def test_mistakes_are_named_before_any_work(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("tokens/opd", [override])
    assert expected in str(error.value)


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"cannot lie on 'cuda:1' - teacher.device - there is no accelerator"):
        make(tmp_path, "opd", "teacher.device=cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(UserError, match=r"there are 2 accelerators here, cuda:0 to cuda:1"):
        check_device("cuda:2")
