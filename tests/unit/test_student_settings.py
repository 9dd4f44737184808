"""Kinds of student with settings of their own: other keys are refused, old recipes still resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from vidalign.build import build_student
from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe
from vidalign.recipe.load import Recipe
from vidalign.recipe.resume import check_same_recipe
from vidalign.students.video.kind import Video

OLD = {"chat": None, "sampling": None, "cache": None}
"""What every saved recipe held under `student` beside what all kinds have, before each had its own settings."""


def saved(recipe: Recipe, folder: Path, **student: object) -> Path:
    """The recipe as an older version saved it."""
    plain = recipe.plain()
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**plain, "student": OLD | plain["student"] | student}), encoding="utf-8")
    return file


OF_VIDEOS = {"preset", "codec", "text", "height", "width", "fps", "numerics", "dtype"}


def test_a_student_has_only_its_own_keys() -> None:
    shared = {"name", "path", "init", "adapter", "checkpointing"}
    speed = {"attention", "compile", "decoder", "forcing_frames"}
    assert load_recipe("world/astrolabe").plain()["student"].keys() == {*shared, *speed, "cache", "sampler", *OF_VIDEOS}
    assert load_recipe("tokens/opd").plain()["student"].keys() == {*shared, "chat", "sampling", "freeze"}


@pytest.mark.parametrize(
    ("recipe", "override", "owner"),
    [("tokens/opd", "student.cache={window: 3}", "video"), ("world/astrolabe", "student.chat={}", "language")],
)
def test_a_key_of_another_kind_is_named_with_its_place(recipe: str, override: str, owner: str) -> None:
    with pytest.raises(RecipeError, match=f"it is a setting of '{owner}', another of the students"):
        load_recipe(recipe, [override])


def test_a_wrong_value_leaves_the_settings_of_the_kind() -> None:
    """Both mistakes are reported: that of a key that all students have, and that of the kind's own."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("world/astrolabe", ["student.checkpointing=3.5", "student.cache={widow: 3}"])
    found = [problem.what for problem in caught.value.problems]
    assert any("student.checkpointing must be" in what for what in found)
    assert any("student.cache.widow" in what for what in found)


@pytest.mark.parametrize(
    ("changes", "sigmas", "first"),
    [
        ("{sigmas: [1.0, 0.7]}", [1.0, 0.7], []),
        ("{first_sigmas: [1.0, 0.9, 0.8]}", [1.0, 0.8, 0.6, 0.4], [1.0, 0.9, 0.8]),
        ("{timesteps: [1000, 500], shift: 3}", [1.0, 0.75], []),  # 3 s / (1 + 2 s)
    ],
)
def test_a_sampler_is_changed(changes: str, sigmas: list[float], first: list[float]) -> None:
    """The student that is built has the levels, and so have the weights that it leaves."""
    recipe = load_recipe("world/sft", [f"student.sampler={changes}"])
    made = Video.spec(recipe.student).sampler
    assert made.sigmas == pytest.approx(sigmas) and made.first_sigmas == pytest.approx(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{sigma: [1.0]}", "did you mean 'sigmas'"),
        ("{sigmas: [0.9, 0.5]}", r"must fall strictly from 1.0 and end above 0, found \[0.9, 0.5\]"),
        ("{first_sigmas: [1.0, x]}", "first_sigmas.1 must be float"),
        ("{sigmas: 3}", "must be list of float"),
        ("{many_steps: {steps: 3}}", "chunk_frames is 3"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(changes: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("world/sft", [f"student.sampler={changes}"])


@pytest.mark.parametrize("name", ["world/astrolabe", "world/astrolabe_long", "tokens/opd", "tokens/pretrain/student"])
def test_an_old_recipe_is_read(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    file = saved(recipe, tmp_path)
    assert load_recipe(file).plain() == recipe.plain()
    check_same_recipe(file, recipe)


def test_keys_that_came_since_have_their_defaults(tmp_path: Path) -> None:
    """A run that began before them goes on, unless they are set otherwise now."""
    recipe = load_recipe("world/astrolabe")
    plain = recipe.plain()
    del plain["student"]["attention"], plain["objective"]["weighting"], plain["trainer"]["signal_floor"]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    check_same_recipe(file, recipe)
    with pytest.raises(UserError, match=r"objective\.weighting: none -> adaptive"):
        check_same_recipe(file, load_recipe("world/astrolabe", ["objective.weighting=adaptive"]))


def test_a_value_that_is_read_is_another_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("world/astrolabe_long")
    file = saved(recipe, tmp_path, cache={"window": 6})
    with pytest.raises(UserError, match=r"student\.cache"):
        check_same_recipe(file, recipe)


def test_attention_is_dispatched_to_the_kernels_that_are_named() -> None:
    """The kernels of torch by name give what the usual ones give."""
    plain = build_student(load_recipe("world/astrolabe"))
    x_t = torch.randn(1, 3, *plain.chunk_shape[1:], generator=torch.Generator().manual_seed(0))
    inputs = (x_t, torch.full((1,), 0.5), torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1)))
    native = build_student(load_recipe("world/astrolabe", ["student.attention=native"]))
    assert native.base.blocks[0].attn1.processor._attention_backend == "native"
    assert plain.base.blocks[0].attn1.processor._attention_backend is None
    with torch.no_grad():
        torch.testing.assert_close(native.velocity(*inputs), plain.velocity(*inputs))


def test_kernels_that_are_not_installed_are_refused() -> None:
    with pytest.raises(UserError, match="the attention kernels 'sage' cannot be used - student.attention"):
        build_student(load_recipe("world/astrolabe", ["student.attention=sage"]))
    with pytest.raises(RecipeError, match=r"student\.attention must be one of 'auto'.*did you mean 'flash'"):
        load_recipe("world/astrolabe", ["student.attention=flsh"])
