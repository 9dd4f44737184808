"""Every shipped recipe says how it is run and can be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_twins import make_twins

from vidalign.errors import UserError
from vidalign.recipe import load_recipe, read_header, recipes_root, shipped_recipes
from vidalign.recipe.resume import check_same_recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_header_gives_purpose_and_command(name: str) -> None:
    header = read_header(shipped_recipes()[name]).splitlines()
    assert not header[0].startswith("Run:"), "the first sentence says what it trains"
    assert any(line.startswith(f"Run: vidalign train {name}") for line in header)


LINKS = {
    "tiny": "tiny",
    "students/sf": "tiny/self_forcing",
    "students/aligned": "tiny/aligned",
    "students/longlive": "tiny/longlive",
    "students/longlive2": "tiny/longlive2",
    "teachers/wan": "tiny/wan",
    "clips": "tiny/clips",
    "teacher_clips": "tiny/clips",
    "prompts.txt": "tiny/prompts.txt",
    "held_out.txt": "tiny/held_out.txt",
}
"""What the recipes at real size and their twins ask for, and what stands for it."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_twins(folder)
    return folder


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_is_valid(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe for a user's own table or student is valid where that is."""
    monkeypatch.chdir(tmp_path)
    for link, target in LINKS.items():
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tiny / target)
    for table in ("prompts.jsonl", "held_out.jsonl", "prompts.parquet", "held_out.parquet"):
        (tmp_path / table).touch()
    weights = recipes_root().parent / "vidalign" / "weights"
    text = shipped_recipes()[name].read_text()
    wanted = re.findall(r"path: ((?:world|events|rules|signs|tokens|pictures)/\w+)", text)
    missing = [name for name in wanted if not (weights / f"{name}.safetensors").is_file()]
    missing += re.findall(r"path: (runs/assets/[\w/.]+)", text)
    if missing:
        pytest.skip(f"{', '.join(missing)} is not there: run `make assets`")
    recipe = load_recipe(name)
    assert recipe.warnings == [] and load_recipe(name).hash == recipe.hash
    kept = tmp_path / "recipe.yaml"
    kept.write_text(recipe.to_yaml())
    check_same_recipe(kept, recipe)
    for label, choice in (recipe.objectives | recipe.rewards).items():
        weight, choice.weight = choice.weight, choice.weight + 0.25
        with pytest.raises(UserError, match=f"began with another recipe.*{label}"):
            check_same_recipe(kept, recipe)
        choice.weight = weight


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_prompts_of_a_step_can_be_shared_out(name: str) -> None:
    """By 2, 4 and 8 processes; those of a twin, and of a recipe that gives as many as one GPU holds, by 2."""
    few, text = name.startswith(("twins/", "longlive2_5b/")), shipped_recipes()[name].read_text()
    for count in re.findall(r"prompts_per_step: (\d+)", text):
        assert int(count) % (2 if few else 8) == 0
