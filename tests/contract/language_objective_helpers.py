"""Token objectives on language students of two layers in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from vidalign import registry
from vidalign.build import build_context, build_objective
from vidalign.context import Batch, TrainContext
from vidalign.data.examples import Example
from vidalign.data.source import open_source
from vidalign.objectives.base import Experience, Objective
from vidalign.recipe import load_recipe
from vidalign.testing.recipes import LANGUAGE, save_language_network, tiny_recipe
from vidalign.tracking.tracker import Tracker

NAMES = ("opd", "gkd", "opsd", "dopd")


PICTURES: dict[str, Any] = dict(
    model_type="llava",
    image_token_index=6,
    image_seq_length=16,
    vision_feature_layer=-1,
    vision_feature_select_strategy="default",
    text_config={**LANGUAGE["config"], "model_type": "llama"},
    vision_config=dict(
        model_type="clip_vision_model",
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    ),
)


def make_student(path: Path, seed: int, tied: bool) -> None:
    save_language_network(path, seed, {**LANGUAGE["config"], "tie_word_embeddings": tied})


def make_picture_student(path: Path, seed: int) -> None:
    save_language_network(path, seed, PICTURES)


def make(folder: Path, name: str, *overrides: str) -> tuple[Objective, TrainContext]:
    content = tiny_recipe(name, registry.get("objectives", name).needs, folder)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    recipe = load_recipe(file, ["trainer.micro_batch=64", *overrides])
    objective = build_objective(recipe)
    return objective, build_context(recipe, objective, Tracker.silent())


def examples(count: int = 3, form: str = "hints") -> list[Example]:
    source = open_source({"name": "tokens", "split": "train", "privilege": form}, 0)
    return [source[n] for n in range(count)]


def collect(objective: Objective, ctx: TrainContext, given: list[Example] | None = None) -> Experience:
    given = given if given is not None else examples()
    with torch.no_grad():
        return objective.collect(ctx, Batch(ctx.step, given, list(range(len(given)))))
