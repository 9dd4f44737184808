"""Teachers with settings of their own: unknown keys are named with their place, old recipes still resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe
from vidalign.recipe.load import Recipe
from vidalign.recipe.resume import check_same_recipe
from vidalign.students.video.guidance import Guidance
from vidalign.teachers.store import ClipStore

OLD = {"path": "", "steps": 24, "fps": 0.0, "skip_corrupt": False, "cache": "", "per_prompt": 1, "options": {}}
"""What every saved recipe held under `teacher` before each teacher had its own settings."""


def told(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, list(overrides))
    return str(caught.value)


def saved(recipe: Recipe, folder: Path, **teacher: object) -> Path:
    """The recipe as an older version saved it."""
    plain = recipe.plain()
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**plain, "teacher": OLD | plain["teacher"] | teacher}), encoding="utf-8")
    return file


def test_a_teacher_has_only_its_own_keys() -> None:
    assert load_recipe("world/sft").plain()["teacher"] == {"name": "world"}
    expected = {"name": "language", "path": "tokens/teacher", "chat": None}
    expected |= {"device": "", "offload": False, "dtype": ""}
    assert load_recipe("tokens/opd").plain()["teacher"] == expected


def test_a_teacher_without_name_is_a_model() -> None:
    recipe = load_recipe("world/student_dmd")
    assert recipe.plain()["teacher"] == {"name": "model", "path": "world/teacher", "guidance": None}
    assert load_recipe("world/student_dmd", ["teacher.name=model"]).teacher == recipe.teacher
    assert "does not fit" in told("world/student_dmd", "teacher.name=world"), "the path of the model is not its"


def test_the_nearest_key_is_named() -> None:
    store = ("world/sft", "teacher.name=store", "teacher.path=.")
    assert "unknown key 'teacher.fsp' - override 3 - did you mean 'fps'?" in told(*store, "teacher.fsp=8")
    assert "teacher.fps must be at least 0 - override 3" in told(*store, "teacher.fps=-1")
    assert "teacher.per_prompt must be at least 1" in told("world/sft", "teacher={name: pipeline, per_prompt: 0}")
    assert "teacher.batch must be at least 1" in told("world/sft", "teacher={name: pipeline, batch: 0}")


def test_guidance_has_one_name() -> None:
    model = "world/student_dmd"
    assert load_recipe(model, ["teacher.guidance.scale=3"]).teacher.config.guidance == Guidance(3.0, "")
    assert "teacher.guidance.scale must be at least 1" in told(model, "teacher.guidance={scale: 0.5}")
    assert "did you mean 'negative_prompt'" in told(model, "teacher.guidance.negative=bad")
    options = "teacher={name: pipeline, path: x, cache: y, options: {guidance_scale: 5.0}}"
    assert "teacher.options names guidance_scale, which is a setting of its own: guidance.scale" in told(
        "world/sft", options
    )
    few = "teacher={name: few_step, guidance: {scale: 3}}"
    assert "it is a setting of 'model' and 'pipeline'" in told("world/dopd", few)


def test_a_key_of_another_teacher_is_named_with_its_place() -> None:
    message = "unknown key 'teacher.fps' - override 1 - it is a setting of 'store', another of the teachers"
    assert message in told("world/sft", "teacher.fps=8")


def test_an_old_recipe_is_read(tmp_path: Path) -> None:
    for name in ("world/sft", "world/student_dmd", "tokens/opd"):
        recipe = load_recipe(name)
        assert load_recipe(saved(recipe, tmp_path)).plain() == recipe.plain()
        check_same_recipe(tmp_path / "recipe.yaml", recipe)


def test_a_value_that_was_never_read_does_not_stop_an_old_run(tmp_path: Path) -> None:
    recipe = load_recipe("world/sft")
    file = saved(recipe, tmp_path, fps=8.0)
    assert load_recipe(file).plain() == recipe.plain()
    check_same_recipe(file, recipe)


def test_a_value_that_is_read_is_another_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("world/student_dmd")
    file = saved(recipe, tmp_path, path="tokens/teacher")
    with pytest.raises(UserError, match=r"teacher\.path: tokens/teacher -> world/teacher"):
        check_same_recipe(file, recipe)


def test_a_written_key_of_another_teacher_is_no_old_recipe(tmp_path: Path) -> None:
    """Only a section with all the old keys was saved by an older version."""
    assert "it is a setting of 'pipeline'" in told("world/sft", "teacher.steps=24")


def test_the_settings_are_those_of_the_class() -> None:
    assert ClipStore.Config("clips", fps=8.0).fps == 8.0
    with pytest.raises(ValueError, match="fps must be at least 0"):
        ClipStore.Config("clips", fps=-1.0)
