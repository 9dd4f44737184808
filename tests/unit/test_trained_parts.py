"""Which parts of a network are trained: the targets of an adapter, and what full fine-tuning leaves frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_families import save as save_text
from chat_runs import ROWS, write_recipe
from PIL import Image
from safetensors.torch import load_file
from tiny_eyes import save

from vidalign.engine.config import AdapterConfig
from vidalign.engine.layers import linear_layers, match_frozen, match_targets
from vidalign.engine.policies import Policies
from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe
from vidalign.students.language import LanguageStudent
from vidalign.students.language_checkpoint import new_model
from vidalign.trainer import Trainer

PARTS = {  # layers in the blocks of the language model, and all of the vision tower, of the tiny models
    "llava": (2 * 7, 6),
    "idefics3": (2 * 7, 6),
    "qwen2_vl": (2 * 7, 4 + 2),
    "qwen3_vl": (2 * 7, 4 + 2 + 2),
    "llava_onevision": (2 * 7, 6),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    return {kind: save(kind, root / kind) for kind in PARTS}


@pytest.mark.parametrize("kind", PARTS)
def test_an_adapter_reaches_the_part_that_is_named(kind: str, folders: dict[str, Path]) -> None:
    student = LanguageStudent.load(folders[kind])
    layers = linear_layers(student)
    text, vision = (match_targets(layers, part) for part in ("text", "vision"))
    decoder = {id(module) for module in student.model.get_decoder().layers.modules()}
    assert {id(student.get_submodule(name)) for name in text} <= decoder
    assert not {id(student.get_submodule(name)) for name in vision} & decoder
    assert (len(text), len(vision)) == PARTS[kind]
    assert match_targets(layers, ["text", "vision"]) == [n for n in layers if n in {*text, *vision}]
    Policies(student, (), AdapterConfig(rank=2, targets="text"))
    trained = {name.partition(".lora_")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert trained == set(text)


def test_a_plain_language_model_is_text_alone() -> None:
    layers = ["model.model.layers.0.mlp.up_proj", "model.lm_head"]
    assert match_targets(layers, "text") == match_targets(layers, "blocks") == layers[:1]
    with pytest.raises(UserError, match="'vision' matches no layer"):
        match_targets(layers, "vision")
    with pytest.raises(UserError, match="did you mean 'vision'"):
        match_targets(layers, "vison")


def test_gpt2_has_linear_layers_in_its_blocks() -> None:
    """They are Conv1D, whose matrix is transposed."""
    layers = linear_layers(new_model(dict(model_type="gpt2", n_embd=8, n_layer=2, n_head=2, vocab_size=9)))
    assert len(match_targets(layers, "blocks")) == 2 * 4
    assert match_targets(layers, ["attn.c_attn"]) == [f"transformer.h.{n}.attn.c_attn" for n in range(2)]


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_with_an_adapter_trains_gpt2(tied: bool, tmp_path: Path) -> None:
    base = save_text("gpt2", tmp_path / "base", tie_word_embeddings=tied)
    recipe = write_recipe(tmp_path, f"path: {base}, adapter: {{rank: 2}}")
    run = Trainer(load_recipe(recipe, ["trainer.steps=2"]), tmp_path / "run").fit()
    before, after = load_file(base / "model.safetensors"), load_file(run / "student" / "model.safetensors")
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if ".c_" in name and name.endswith("weight")}


FREEZE: dict[str, tuple[list[str], Any]] = {
    "vision": (["vision"], lambda name: "vision_tower" in name),
    "text": (["text"], lambda name: "language_model" in name or "lm_head" in name),
    "a layer": (["layers.0.mlp"], lambda name: ".layers.0.mlp." in name),
    "a glob and a tail": (["*norm*", "embed_tokens"], lambda name: "norm" in name or "embed_tokens" in name),
}


@pytest.mark.parametrize("case", FREEZE)
def test_what_is_frozen_does_not_move(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    patterns, is_frozen = FREEZE[case]
    base = folders["llava"]
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    rows = [row | {"images": ["red.png"]} for row in ROWS]
    file = write_recipe(tmp_path, f"path: {base}", rows=rows)
    recipe = load_recipe(file, [f"student.freeze={patterns}", "trainer.steps=1"])
    trainer = Trainer(recipe, tmp_path / "run")
    network = trainer.ctx.roles.engines["student"].network
    assert isinstance(network, LanguageStudent)
    trained = {name for name in trainer.ctx.policies._trained}
    assert trained == {name for name, _ in network.named_parameters() if not is_frozen(name)}
    run = trainer.fit()
    student, before = LanguageStudent.load(run / "student"), LanguageStudent.load(base)
    own, other = student.state_dict(), before.state_dict()
    assert own.keys() == other.keys()
    frozen = {name for name in own if is_frozen(name)}
    assert frozen and all(torch.equal(own[name], other[name]) for name in frozen)
    assert any(not torch.equal(own[name], other[name]) for name in own.keys() - frozen)


@pytest.mark.parametrize("change", ["student.freeze=[text, multi_modal_projector]", "student.adapter.targets=vision"])
def test_a_batch_that_reaches_no_trained_weight_has_no_gradient(
    change: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Questions without pictures, and the vision tower alone is trained."""
    trainer = Trainer(load_recipe(write_recipe(tmp_path, f"path: {folders['llava']}"), [change]), tmp_path / "run")
    assert trainer.train_step()["health/grad_norm/mean"] == 0


def test_a_resumed_run_leaves_them_frozen(tmp_path: Path) -> None:
    base = save_text("qwen", tmp_path / "base")
    recipe = write_recipe(tmp_path, f"path: {base}, freeze: [embed_tokens]")
    changes = ["trainer.steps=2", "trainer.save_every=1", "trainer.ema_decay=0.5"]
    Trainer(load_recipe(recipe, changes), tmp_path / "whole").fit()
    half = Trainer(load_recipe(recipe, changes), tmp_path / "halves")
    half.train_step()
    half.save()
    half.tracker.close()
    Trainer(load_recipe(recipe, changes), tmp_path / "halves", resume=True).fit()
    first, second = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    old = load_file(base / "model.safetensors")
    assert torch.equal(first["model.embed_tokens.weight"], old["model.embed_tokens.weight"])


def test_a_head_that_is_the_embedding_is_frozen_by_either_name(tmp_path: Path) -> None:
    for name in ("lm_head", "embed_tokens"):
        student = LanguageStudent.load(save_text("qwen", tmp_path / name)).freeze([name])
        assert not student.head_weight.requires_grad


def test_mistakes_name_the_nearest(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, f"path: {folders['llava']}")
    for change, message in {
        "student.freeze=[vison]": "did you mean 'vision'",
        "student.freeze=[multi_modal_projektor]": "did you mean .*multi_modal_projector",
        "student.freeze=['*']": "nothing is left to train",
    }.items():
        with pytest.raises(RecipeError, match=message) as error:
            load_recipe(recipe, [change])
        assert "student.freeze" in str(error.value)
    with pytest.raises(RecipeError, match="has no use here"):
        load_recipe(recipe, ["student.freeze=[vision]", "student.adapter.rank=2"])
    with pytest.raises(UserError, match="did you mean 'vision'"):
        match_frozen(["model.vision_tower.a.weight"], ["visoin"])
