"""Token objectives on language students of two layers in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vidalign.build import build_context, build_objective
from vidalign.context import Batch, TrainContext
from vidalign.data.examples import Example
from vidalign.data.source import open_source
from vidalign.objectives.base import Experience, Objective
from vidalign.recipe import load_recipe
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec
from vidalign.tracking.tracker import Tracker

CONFIG: dict[str, Any] = dict(
    model_type="qwen3",
    vocab_size=102,
    hidden_size=16,
    head_dim=8,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=2,
    bos_token_id=None,
)
STOP = [str(digit) for digit in range(10)]
"""Further stop tokens: random students would never end by themselves, and lengths must differ."""
NAMES = ("opd", "gkd", "opsd", "dopd")


PICTURES: dict[str, Any] = dict(
    model_type="llava",
    image_token_index=6,
    image_seq_length=16,
    vision_feature_layer=-1,
    vision_feature_select_strategy="default",
    text_config={**CONFIG, "model_type": "llama"},
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
    save_network(path, seed, {**CONFIG, "tie_word_embeddings": tied})


def make_picture_student(path: Path, seed: int) -> None:
    save_network(path, seed, PICTURES)


def save_network(path: Path, seed: int, config: dict[str, Any]) -> None:
    spec = LanguageSpec.from_dict({"config": config})
    student = LanguageStudent.from_spec(spec, seed)
    with torch.no_grad():  # stock weights are so small that every token is as likely as every other
        for parameter in student.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    student.save(path)


def make(folder: Path, name: str, *overrides: str) -> tuple[Objective, TrainContext]:
    lines = [
        f"student: {{name: language, path: {folder}/student.safetensors, sampling: {{max_new_tokens: 10, "
        f"stop: {STOP}}}}}",
        f"objective: {{name: {name}}}",
        "data: {prompts: 'tokens:train', eval_prompts: 'tokens:held_out'}",
        "trainer: {micro_batch: 64}",
        "tracking: {tensorboard: false, panel: none, clips_every: 0}",
        "engine: {precision: fp64}",
    ]
    if name != "opsd":
        lines.append(f"teacher: {{name: language, path: {folder}/teacher.safetensors}}")
    file = folder / f"{name}.yaml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = load_recipe(file, list(overrides))
    objective = build_objective(recipe)
    return objective, build_context(recipe, objective, Tracker.silent())


def examples(count: int = 3, form: str = "hints") -> list[Example]:
    source = open_source({"name": "tokens", "split": "train", "privilege": form}, 0)
    return [source[n] for n in range(count)]


def collect(objective: Objective, ctx: TrainContext, given: list[Example] | None = None) -> Experience:
    given = given if given is not None else examples()
    with torch.no_grad():
        return objective.collect(ctx, Batch(ctx.step, given, list(range(len(given)))))
