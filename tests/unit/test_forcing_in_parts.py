"""Teacher forcing in parts: values of one call, the gradient on a frozen context, and the memory of a part."""

from __future__ import annotations

import pytest
import torch
from student_reference import inputs, student
from torch import Tensor

from vidalign.build import build_student
from vidalign.engine.base import build_engine
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.meter import CountedBytes
from vidalign.engine.policies import Policies
from vidalign.errors import RecipeError
from vidalign.recipe import load_recipe
from vidalign.students.video import CachePolicy, VideoStudent
from vidalign.teachers.few_step import FewStepTeacher

POLICIES = {
    "all of the past": CachePolicy(chunk_frames=3),
    "window and sink": CachePolicy(chunk_frames=3, window=9, sink=3),
    "relative": CachePolicy(chunk_frames=3, window=6, rope="relative"),
    "frames": CachePolicy(chunk_frames=1, window=4, sink=1),
}
FRAMES = 15


def given(rows: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy and clean frames ``[N, F, C, H, W]``, a level for every frame and texts ``[N, L, D]``, in fp64."""
    noise, clean, text = (x.double() for x in inputs(FRAMES))
    scale = torch.arange(1, rows + 1).view(-1, 1, 1, 1, 1)
    level = torch.linspace(0.2, 0.9, FRAMES // 3).repeat_interleave(3).expand(rows, -1).double()
    return noise * scale, clean / scale, level, torch.cat([text * n for n in range(1, rows + 1)])


def weights(network: VideoStudent) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [3, 6, 12])
@pytest.mark.parametrize("name", POLICIES)
def test_values_are_those_of_one_call(name: str, size: int) -> None:
    network = student(POLICIES[name]).double()
    x_t, clean, level, text = given()
    with torch.no_grad():
        whole = network.velocity(x_t, level, text, clean=clean)
        network.forcing_frames = size
        parts = network.velocity(x_t, level, text, clean=clean)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)
        network.eval().requires_grad_(True)
    torch.testing.assert_close(network.velocity(x_t, level, text, clean=clean).detach(), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_the_gradient_is_that_on_a_frozen_context(name: str, checkpointing: bool) -> None:
    """The twin spells the parts out: ordinary autograd on contexts that `extend` made without a gradient."""
    network = student(POLICIES[name]).double()
    x_t, clean, level, text = given()
    x_t.requires_grad_()
    past, outputs = network.begin(text), []
    for start in range(0, FRAMES, 6):
        part = slice(start, start + 6)
        outputs.append(network.velocity(x_t[:, part], level[:, part], text, past, clean=clean[:, part]))
        past = network.extend(past, clean[:, part], text)
    torch.cat(outputs, 1).square().mean().backward()
    expected, expected_x = weights(network), x_t.grad.clone()
    network.zero_grad()
    x_t.grad = None
    network.gradient_checkpointing(checkpointing)
    network.forcing_frames = 6
    network.velocity(x_t, level, text, clean=clean).square().mean().backward()
    found = weights(network)
    assert found.keys() == expected.keys() and len(found) > 20
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(x_t.grad, expected_x, rtol=1e-8, atol=1e-12)


def test_adapters_learn_the_same_through_an_engine_in_bf16() -> None:
    """Casts of the engine are in force when a part is made again."""
    found = []
    for size in (0, 6):
        network = student(POLICIES["all of the past"])
        policies = Policies(network, (), AdapterConfig(rank=2, alpha=4))
        engine = build_engine(EngineConfig(precision="bf16"), OptimizerConfig(), network, 5, policies)
        engine.unfreeze()
        x_t, clean, level, text = (x.float() for x in given())
        network.forcing_frames = size
        view = engine.view(own_phase=True)
        engine.backward(view.velocity(x_t, level, text, clean=clean).square().mean())
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    whole, parts = found
    assert whole.norm() > 0
    assert torch.cosine_similarity(whole, parts, 0) > 0.95, "only the path through earlier clean frames is missing"


def test_memory_is_that_of_a_part() -> None:
    """The peak of a loss over five chunks at a time does not grow with the video, beside outputs and the past."""
    peaks = {}
    for size in (0, 3):
        network = student(POLICIES["window and sink"])
        network.forcing_frames = size
        for repeats in (1, 3):
            x_t, clean, level, text = (x.float() for x in given(1))
            x_t, clean = (x.repeat(1, repeats, 1, 1, 1) for x in (x_t, clean))
            with CountedBytes("cpu") as live:
                out = network.velocity(x_t, level.repeat(1, repeats), text, clean=clean)
                out.square().mean().backward()
                peaks[size, repeats] = live.restart()
    assert peaks[0, 3] > 2.5 * peaks[0, 1]
    assert peaks[3, 3] < 1.2 * peaks[3, 1]


def test_recipes_say_it_and_wrong_ones_are_refused() -> None:
    recipe = load_recipe("world/sft", ["student.forcing_frames=6"])
    assert build_student(recipe).forcing_frames == 6
    with pytest.raises(RecipeError, match="forcing_frames 4 is not whole chunks.*use 3"):
        load_recipe("world/sft", ["student.forcing_frames=4"])
    with pytest.raises(RecipeError, match="forcing_frames must be at least 0"):
        load_recipe("world/sft", ["student.forcing_frames=-3"])
    zero3 = ["engine={name: deepspeed, zero_stage: 3}", "student.forcing_frames=6"]
    with pytest.raises(RecipeError, match="ZeRO-3 does not take teacher forcing in parts"):
        load_recipe("world/sft", zero3)


def test_teachers_take_parts_too() -> None:
    teacher = FewStepTeacher(student())
    teacher.configure(FewStepTeacher.Config(forcing_frames=6))
    assert teacher.model.forcing_frames == 6
    with pytest.raises(RecipeError, match="teacher.forcing_frames 4 is not whole chunks"):
        load_recipe("world/dopd", ["teacher.path=world/student", "teacher.forcing_frames=4"])
