"""Prompts as a text or as a mapping with settings; the key `data.privilege` of older recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vidalign.build import build_prompts
from vidalign.data.source import find_source, open_source, shortened
from vidalign.errors import RecipeError
from vidalign.recipe import load_recipe
from vidalign.recipe.load import Recipe
from vidalign.recipe.resume import check_same_recipe

LONG = {"name": "tokens", "split": "train", "privilege": "answer"}


def told(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, list(overrides))
    return str(caught.value)


def test_both_forms_mean_the_same() -> None:
    assert find_source("tokens:train")[1] == find_source(LONG)[1] == "train"
    assert find_source({"name": "text", "path": "a.txt"}) == find_source("a.txt")
    assert find_source({"name": "datasets", "source": "a:b"}) == find_source("datasets:a:b")
    long = {**LONG, "privilege": "hints"}
    assert open_source(long, 3)[5] == open_source("tokens:train", 3)[5] and shortened(long) == "tokens:train"
    assert shortened(LONG) == LONG and open_source(LONG, 3)[5].privileged.startswith("answer")
    for text in ("a.txt", "b.jsonl", "datasets:a:b", "world:train", "world:a.txt"):
        kind, argument = find_source(text)
        assert shortened({"name": text.partition(":")[0], kind.argument: argument} if ":" in text else text) == text


def test_a_layer_above_adds_a_setting() -> None:
    recipe = load_recipe("tokens/dopd", ["data.prompts.privilege=answer"])
    assert recipe.data.prompts == LONG and build_prompts(recipe)[0].privileged.startswith("answer")
    assert load_recipe("tokens/dopd").data.prompts == "tokens:train", "hints are the default"
    assert load_recipe("tokens/dopd", ["data.prompts=tokens:held_out"]).data.prompts == "tokens:held_out"
    assert load_recipe("tokens/pretrain/student").data.prompts == {**LONG, "privilege": "mixed"}


def test_it_is_printed_and_read_back(tmp_path: Path) -> None:
    recipe = load_recipe("tokens/dopd", ["data.prompts.privilege=answer"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").hash == recipe.hash != load_recipe("tokens/dopd").hash


def test_mistakes_name_the_key() -> None:
    message = "unknown key 'data.prompts.privilge' - override 1 - did you mean 'privilege'?"
    assert message in told("tokens/dopd", "data.prompts.privilge=answer")
    assert "data.prompts.privilege must be one of" in told("tokens/dopd", "data.prompts.privilege=hint")
    assert "unknown key 'data.prompts.privilege'" in told("world/sft", "data.prompts.privilege=hints")
    assert "'token' is not among the prompts" in told("tokens/dopd", "data.prompts={name: token, split: train}")


def test_the_old_key_is_named_with_its_new_place() -> None:
    message = told("tokens/dopd", "data.privilege=answer")
    assert "unknown key 'data.privilege' - override 1 - it moved to the prompts: data.prompts={name: tokens" in message


def saved(recipe: Recipe, folder: Path, privilege: str) -> Path:
    """The recipe as an older version saved it."""
    plain = recipe.plain()
    prompts = "world:train" if recipe.student.name == "video" else "tokens:train"
    data = {key: plain["data"][key] for key in ("prompts", "eval_prompts", "frames")}
    data |= {"prompts": prompts, "privilege": privilege}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**plain, "data": data}), encoding="utf-8")
    return folder / "recipe.yaml"


def test_an_old_run_goes_on(tmp_path: Path) -> None:
    for name, privilege in (("tokens/opd", "hints"), ("tokens/dopd", "answer"), ("world/sft", "hints")):
        changes = ["data.prompts.privilege=answer"] if privilege == "answer" else []
        recipe = load_recipe(name, [*changes, "data.prompts=world:train"] if name == "world/sft" else changes)
        file = saved(recipe, tmp_path, privilege)
        assert load_recipe(file).plain() == recipe.plain()
        check_same_recipe(file, recipe)
