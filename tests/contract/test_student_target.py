"""`student_target`: whose weights the privileged student has, in DOPD and OPSD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_objective_helpers import collect, make, make_student
from plain_divergences import divergence
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.objectives.base import Objective, Phase
from vidalign.objectives.parts import tokens
from vidalign.students.language import LanguageStudent

DECAY = 0.75
ADAPTERS = {"all weights": (), "adapter": ("student.adapter={rank: 2, alpha: 4}",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student_target")
    make_student(folder / "student.safetensors", 1, tied=True)
    make_student(folder / "teacher.safetensors", 2, tied=False)
    return folder


def made(folder: Path, name: str, target: str, *overrides: str) -> tuple[Objective, TrainContext]:
    settings = (f"objective.student_target={target}", f"objective.target_decay={DECAY}", "trainer.learning_rate=0.05")
    return make(folder, name, *settings, *overrides)


def update(objective: Objective, ctx: TrainContext) -> Any:
    """A step; returns the experience and its loss."""
    data, total = collect(objective, ctx), 0.0
    phase = Phase()
    with ctx.roles.phase("student") as engine:
        for piece in objective.micro_batches(ctx, data, phase):
            loss = objective.loss(ctx, piece, phase).loss * piece.weight
            total += float(loss)
            engine.backward(loss)
        engine.step()
    objective.after_step(ctx)
    ctx.step += 1
    return data, total


def weights(ctx: TrainContext, name: str) -> Tensor:
    """All weights that are trained, in one row."""
    return torch.cat([x.detach().flatten().clone() for x in ctx.policies._tensors(name)])


@pytest.mark.parametrize("overrides", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("name", ["opsd", "dopd"])
def test_frozen_stays_and_the_average_follows(name: str, overrides: tuple[str, ...], folder: Path) -> None:
    objective, ctx = made(folder, name, "frozen", *overrides)
    start = weights(ctx, "reference")
    update(objective, ctx)
    assert torch.equal(weights(ctx, "reference"), start) and not torch.equal(weights(ctx, "current"), start)
    objective, ctx = made(folder, name, "ema", *overrides)
    expected = weights(ctx, "reference")
    for _ in range(2):
        update(objective, ctx)
        expected = DECAY * expected + (1 - DECAY) * weights(ctx, "current")
        torch.testing.assert_close(weights(ctx, "reference"), expected)


@pytest.mark.parametrize("overrides", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("name", ["opsd", "dopd"])
def test_the_first_step_is_that_of_the_current_weights(name: str, overrides: tuple[str, ...], folder: Path) -> None:
    """Both start equal: loss and update are the same, though DOPD's S^p is another pass where p is empty."""
    found = []
    for target in ("current", "frozen", "ema"):
        objective, ctx = made(folder, name, target, *overrides)
        _, loss = update(objective, ctx)
        found.append((loss, weights(ctx, "current")))
    for loss, moved in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-10)
        torch.testing.assert_close(moved, found[0][1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["opsd", "dopd"])
def test_the_target_is_the_student_of_the_start(name: str, folder: Path) -> None:
    """With the student moved by hand: the divergence from another network, which holds the weights of the start."""
    settings = () if name == "opsd" else ("objective.routing=uniform", "objective.ht={source: student, weight: 1}")
    objective, ctx = made(folder, name, "frozen", *settings)
    start = LanguageStudent.load(folder / "student.safetensors").double()
    with torch.no_grad():
        for tensor in ctx.policies._tensors("current"):
            tensor.mul_(1.5)
    data, loss = update(objective, ctx) if name == "opsd" else (collect(objective, ctx), None)
    moved = LanguageStudent.load(folder / "student.safetensors").double()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.5)
    texts = [data.prompts[group].privileged for group in data.group_index.tolist()]
    ours = moved.project(tokens.states(ctx, moved, data))
    theirs = start.project(tokens.states(ctx, start, data, texts))
    expected = divergence(ours, theirs, "reverse_kl" if name == "opsd" else "js")
    weight = tokens.token_weights(tokens.mask_of(data)).double()
    if loss is None:
        with ctx.roles.phase("student"):
            pieces = objective.micro_batches(ctx, data, Phase())
            loss = sum(float(objective.loss(ctx, piece, Phase()).loss) * piece.weight for piece in pieces)
    assert loss == pytest.approx(float((expected * weight).sum()), rel=1e-6)
