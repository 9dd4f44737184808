"""Recipes: composition, types, and every kind of mistake with its place."""

from __future__ import annotations

import ast
import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from vidalign import registry
from vidalign.data.source import spelled_out
from vidalign.errors import RecipeError
from vidalign.objectives.base import Needs
from vidalign.recipe import load_recipe
from vidalign.recipe.differences import differences
from vidalign.recipe.explain import field_docs, render

TRANSFORMER = dict(
    patch_size=[1, 8, 8],
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=3,
    out_channels=3,
    text_dim=16,
    freq_dim=16,
    ffn_dim=32,
    num_layers=2,
    cross_attn_norm=True,
)


@dataclass
class Clip:
    chunks: int = 1
    """Chunks of a clip."""


class Toy:
    needs = Needs(students=("video",), rewards=True, min_group=2)

    @dataclass
    class Config:
        group_size: int = 4
        """Candidates of one prompt."""
        beta: float = 0.1
        """Strength of the update."""
        clip: Clip | None = None
        """The clip that is scored."""

        def __post_init__(self) -> None:
            if self.beta <= 0:
                raise ValueError("beta must be positive")


class Words(Toy):
    needs = Needs(students=("language",))

    @dataclass
    class Config:
        temperature: float = 1.0
        """Of the sampler."""


class Bright:
    pass


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    registry.register("objectives", "toy")(Toy)
    registry.register("objectives", "words")(Words)
    registry.register("rewards", "bright")(Bright)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    metadata = {"spec": json.dumps({"transformer": TRANSFORMER, "text": {"name": "world"}})}
    save_file({"a": torch.zeros(1)}, tmp_path / "student.safetensors", metadata=metadata)
    write(
        "base.yaml",
        """\
        student: {path: student.safetensors}
        objective: {name: toy, group_size: 8}
        rewards: {bright: 1.0}
        trainer:
          steps: 5
          learning_rate: 1e-3
        """,
    )
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).write_text(textwrap.dedent(text))


def problems(name: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, list(overrides))
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def problems_of(text: str, name: str) -> list[str]:
    write(name, text)
    return problems(name)


def only(name: str, *overrides: str) -> str:
    (problem,) = problems(name, *overrides)
    return problem


def test_values_defaults_and_types(folder: Path) -> None:
    recipe = load_recipe("base.yaml")
    assert recipe.objective.name == "toy" and recipe.objective.config == Toy.Config(group_size=8)
    assert recipe.trainer.learning_rate == 0.001 and recipe.trainer.steps == 5
    assert recipe.trainer.betas == (0.9, 0.999) and recipe.student.adapter is None
    assert recipe.reward_weights == {"bright": 1.0} and recipe.warnings == []


def test_two_parents_merge_and_the_nearest_wins(folder: Path) -> None:
    write("middle.yaml", "base: base\ntrainer: {steps: 6, clip: 2.0}\nobjective: {beta: 0.5}\n")
    write("top.yaml", "base: middle.yaml\ntrainer: {steps: 7}\nstudent: {adapter: {rank: 4}}\n")
    recipe = load_recipe("top.yaml")
    assert (recipe.trainer.steps, recipe.trainer.clip, recipe.trainer.learning_rate) == (7, 2.0, 0.001)
    assert (recipe.objective.config.group_size, recipe.objective.config.beta) == (8, 0.5)
    assert recipe.student.path == "student.safetensors" and recipe.student.adapter.rank == 4


def test_a_third_parent_is_refused(folder: Path) -> None:
    write("a.yaml", "base: base.yaml\n")
    write("b.yaml", "base: a.yaml\n")
    write("c.yaml", "base: b.yaml\n")
    load_recipe("b.yaml")
    assert "chain of `base:` is too long - a.yaml:1" in only("c.yaml")


def test_overrides_set_and_delete(folder: Path) -> None:
    overrides = ["trainer.steps=9", "objective.clip.chunks=2", "~rewards.bright", "rewards.bright=3"]
    recipe = load_recipe("base.yaml", overrides)
    assert recipe.trainer.steps == 9 and recipe.objective.config.clip == Clip(2)
    assert recipe.reward_weights == {"bright": 3.0}
    assert load_recipe("base.yaml", ["~trainer.steps"]).trainer.steps == 60  # the default again
    assert load_recipe("base.yaml", ["trainer.betas=[0.5, 0.6]"]).trainer.betas == (0.5, 0.6)


def test_another_objective_drops_the_settings_of_the_parents_objective(folder: Path) -> None:
    registry.register("objectives", "other")(type("Other", (Words,), {"needs": Needs()}))
    recipe = load_recipe("base.yaml", ["objective.temperature=2", "objective.name=other"])
    assert recipe.objective.config.temperature == 2.0  # in either order, and group_size is gone


def test_all_mistakes_are_told_together_with_file_and_line(folder: Path) -> None:
    write(
        "bad.yaml",
        """\
        base: base.yaml
        trainer:
          stpes: 3
          learning_rate: fast
          schedule: cosin
        objective: {group_sise: 1, beta: -1}
        rewards: {brigt: 1.0}
        trainr: {}
        """,
    )
    told = problems("bad.yaml", "engine.zero_stage=7", "seed=x", "nonsense")
    expected = [
        "'trainer.stpes' - bad.yaml:3 - did you mean 'steps'?",
        "trainer.learning_rate must be float, not 'fast' (str) - bad.yaml:4",
        "trainer.schedule must be one of 'constant', 'cosine', not 'cosin' (str) - bad.yaml:5",
        "'objective.group_sise' - bad.yaml:6 - did you mean 'group_size'?",
        "objective.beta must be positive - bad.yaml:6",
        "'brigt' is not among the rewards - bad.yaml:7 - did you mean 'bright'?",
        "unknown key 'trainr' - bad.yaml:8 - did you mean 'trainer'?",
        "zero_stage is 7 - override 1",
        "seed must be int, not 'x' (str) - override 2",
        "cannot read 'nonsense' - override 3",
    ]
    for text in expected:
        assert any(text in one for one in told), (text, told)
    assert len(told) == len(expected)


def test_a_mistake_in_a_parent_is_blamed_on_the_parent(folder: Path) -> None:
    write("child.yaml", "base: base.yaml\ntrainer: {clip: 0.5}\n")
    Path("base.yaml").write_text(Path("base.yaml").read_text().replace("steps: 5", "steps: many"))
    assert "trainer.steps must be int, not 'many' (str) - base.yaml:5" in only("child.yaml")


def test_group_size_of_one(folder: Path) -> None:
    told = only("base.yaml", "objective.group_size=1")
    assert told.startswith("a group size of 1 is too small for 'toy' - override 1") and "use 2 or more" in told


def test_objective_that_does_not_support_the_student(folder: Path) -> None:
    write("words.yaml", "student: {path: student.safetensors}\nobjective: {name: words}\n")
    assert "'words' does not support the student 'video'" in only("words.yaml")


def test_rewards_and_teacher_that_the_objective_needs(folder: Path) -> None:
    assert "there are no rewards - base.yaml:2" in only("base.yaml", "~rewards")
    taught = type("Taught", (Toy,), {"needs": Needs(teacher="velocity")})
    registry.register("objectives", "taught")(taught)
    told = only("base.yaml", "objective.name=taught")
    assert "there is no teacher - base.yaml" in told and "needs one that offers velocity" in told
    told = only("base.yaml", "objective.name=taught", "teacher.name=world")
    assert told.startswith("the teacher 'world' does not fit - override 2")
    told = only("base.yaml", "objective.name=taught", "teacher.name=model")
    assert told.startswith("the teacher has no weights - override 2")
    load_recipe("base.yaml", ["objective.name=taught", "teacher={name: model, path: student.safetensors}"])


@pytest.mark.parametrize("targets", ["blocks", "[attn1.to_q, ffn.net.2]", "'*.attn2.*'"])
def test_adapter_patterns_that_match(folder: Path, targets: str) -> None:
    load_recipe("base.yaml", [f"student.adapter.targets={targets}"])


def test_adapter_pattern_that_matches_no_layer(folder: Path) -> None:
    told = only("base.yaml", "student.adapter.targets=[attn1.to_q, attn1.to_qq]")
    assert told.startswith("adapter pattern 'attn1.to_qq' matches no layer - override 1")
    assert "transformer.blocks.*.attn1.to_k" in told and "transformer.blocks.*.ffn.net.2" in told


def test_random_student_is_checked_by_its_specification(folder: Path) -> None:
    write("init.yaml", "base: base.yaml\nstudent:\n  init:\n    transformer: " + json.dumps(TRANSFORMER) + "\n")
    assert load_recipe("init.yaml", ["~student.path"]).student.init == {"transformer": TRANSFORMER}
    assert "both path and init - init.yaml:3" in only("init.yaml")
    told = only("init.yaml", "~student.path", "student.init.cache.chunk_framse=3")
    assert "'student.init.cache.chunk_framse' - override 2 - did you mean 'chunk_frames'?" in told


def test_weights_that_are_missing_or_damaged(folder: Path) -> None:
    assert "no such weights - override 1 (gone" in only("base.yaml", "student.path=gone.safetensors")
    Path("half.safetensors").write_bytes(Path("student.safetensors").read_bytes()[:40])
    assert "cannot read the weights" in only("base.yaml", "student.path=half.safetensors")
    save_file({"a": torch.zeros(1)}, "bare.safetensors")
    assert "carry no specification" in only("base.yaml", "student.path=bare.safetensors")
    assert "there is no student - base.yaml:1 " in only("base.yaml", "~student.path")


def test_prompts(folder: Path) -> None:
    assert "did you mean 'train'?" in only("base.yaml", "data.prompts=world:trian")
    assert "gone.txt cannot be read" in only("base.yaml", "data.prompts=gone.txt")
    assert "did you mean the source 'world'?" in only("base.yaml", "data.prompts=wrold:train")
    Path("empty.txt").write_text("\n  \n")
    assert "holds no prompt" in only("base.yaml", "evaluation.prompts=empty.txt")
    Path("odd.txt").write_text("a small red circle bounces\na mauve dragon bounces\n")
    (warning,) = load_recipe("base.yaml", ["data.prompts=odd.txt"]).warnings
    assert "mauve, dragon" in str(warning) and "odd.txt" in str(warning)


def test_unreadable_recipes(folder: Path) -> None:
    assert "did you mean" not in only("nowhere/at/all")
    write("syntax.yaml", "student: {path: x\ntrainer: 3\n")
    assert "not valid YAML - syntax.yaml:2" in only("syntax.yaml")
    write("twice.yaml", "base: base.yaml\nseed: 1\nseed: 2\n")
    assert "'seed' is given twice - twice.yaml:3 - first at twice.yaml:2" in only("twice.yaml")
    write("list.yaml", "- 1\n")
    assert "evaluation.metrics must be mapping or null, not ['x'] (list)" in only("base.yaml", "evaluation.metrics=[x]")
    assert "callbacks.early_stop must be a mapping, not 5" in only("base.yaml", "callbacks.early_stop=5")
    assert "must be a mapping of sections - list.yaml" in only("list.yaml")
    write("orphan.yaml", "base: bse.yaml\n")
    assert "no base 'bse.yaml' - orphan.yaml:1" in only("orphan.yaml")
    assert "objective.name is missing - empty.yaml" in problems_of("", "empty.yaml")[0]
    write("scalar.yaml", "base: base.yaml\ntrainer: 3\n")
    assert "trainer must be a mapping, not 3 - scalar.yaml:2" in only("scalar.yaml")


def test_the_printed_recipe_is_the_same_recipe(folder: Path) -> None:
    recipe = load_recipe("base.yaml", ["student.adapter.rank=4", "objective.clip.chunks=2"])
    for explain in (False, True):
        Path("again.yaml").write_text(render(recipe, explain))
        again = load_recipe("again.yaml")
        assert again == recipe or again.plain() == recipe.plain()
        assert again.hash == recipe.hash
    assert load_recipe("base.yaml").hash != recipe.hash


def test_explain_tells_meaning_and_origin(folder: Path) -> None:
    lines = render(load_recipe("base.yaml", ["objective.beta=0.2"]), explain=True).splitlines()
    assert lines[lines.index("  # Strength of the update.") + 1] == "  beta: 0.2  # override 1"
    assert "  steps: 5  # base.yaml:5" in lines and any(line.endswith("# default") for line in lines)


def test_every_field_of_the_schema_has_a_docstring() -> None:
    import vidalign.recipe.schema as schema

    source = ast.parse(Path(schema.__file__).read_text())
    for node in source.body:
        if isinstance(node, ast.ClassDef):
            cls = getattr(schema, node.name)
            assert set(field_docs(cls)) == set(cls.__dataclass_fields__), node.name


@dataclass
class Inner:
    source: str = "teacher"
    """Who."""
    weight: float = 1.0
    """How much."""


@dataclass
class Outer:
    inner: Inner = field(default_factory=lambda: Inner("student", 0.3))
    """A section inside a section."""
    many: dict[str, Inner] = field(default_factory=lambda: {"a": Inner("student", 0.5)})
    """Sections by name."""


class Nested(Toy):
    @dataclass
    class Config(Toy.Config):
        part: Inner = field(default_factory=lambda: Inner("student", 0.6))
        """A section whose default is not that of its class."""
        outer: Outer = field(default_factory=lambda: Outer(Inner("reference", 0.1)))
        """Two levels."""


def written(recipe: str, *overrides: str) -> dict[str, Any]:
    """The built recipe as it stands in a run's folder."""
    return dict(yaml.safe_load(load_recipe(recipe, list(overrides)).to_yaml()))


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("objective.part.weight=2", {"objective.part.weight": (0.6, 2.0)}),
        ("objective.outer.inner.weight=2", {"objective.outer.inner.weight": (0.1, 2.0)}),
        ("objective.outer.many.a.weight=2", {"objective.outer.many.a.weight": (0.5, 2.0)}),
    ],
)
def test_an_override_changes_what_it_names_and_nothing_else(
    folder: Path, override: str, changed: dict[str, tuple[float, float]]
) -> None:
    registry.register("objectives", "nested")(Nested)
    before = written("base.yaml", "objective.name=nested")
    after = written("base.yaml", "objective.name=nested", override)
    assert {k: (a, b) for k, a, b in differences(before, after)} == changed


def _ablations() -> list[tuple[str, list[str]]]:
    rows = []
    for file in sorted((Path(__file__).parents[2] / "benchmarks/protocols").glob("*.yaml")):
        for row in yaml.safe_load(file.read_text())["objectives"].values():
            if isinstance(row, dict) and row.get("overrides"):
                rows.append((row["recipe"], row["overrides"]))
    return rows


@pytest.mark.parametrize(("recipe", "overrides"), _ablations())
def test_the_rows_of_protocols_change_exactly_the_keys_that_they_name(recipe: str, overrides: list[str]) -> None:
    """The meaning of a documented ablation: the built settings differ from the recipe's in the named keys only."""
    shipped = [text.replace("runs/aligned/student.safetensors", "world/teacher") for text in overrides]
    before, after = written(recipe), written(recipe, *shipped)
    named = [text.lstrip("~").split("=")[0] for text in overrides]
    for values in (before, after):
        name, settings = spelled_out(values["data"]["prompts"])
        values["data"]["prompts"] = {"name": name, **settings}
    changed = [key for key, _, _ in differences(before, after)]
    assert changed and all(any(f"{key}.".startswith(f"{name}.") for name in named) for key in changed)
