"""Networks of one layer and recipes around them: a training step takes a fraction of a second on one core.

Weights are random and larger than stock ones, so that rollouts, tokens and gradients differ from sample to sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VIDEO: dict[str, Any] = {
    "transformer": {
        "patch_size": [1, 8, 8],
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 3,
        "out_channels": 3,
        "text_dim": 64,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 1,
        "cross_attn_norm": True,
        "rope_max_seq_len": 64,
    },
    "prediction": "x0",
}
"""Specification of the tiny video student: clips of 32 x 32 pixels in chunks of 3 frames."""
LANGUAGE: dict[str, Any] = {
    "config": {
        "model_type": "qwen3",
        "vocab_size": 102,
        "hidden_size": 16,
        "head_dim": 8,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": None,
        "tie_word_embeddings": True,
    }
}
"""Specification of the tiny language student, with the words of the embedded problems."""
SAMPLING: dict[str, Any] = {"max_new_tokens": 10, "stop": [str(digit) for digit in range(10)]}
"""Random students hardly end by themselves: digits end a response, so that lengths differ."""
GROUP = 4
"""Candidates per prompt, where an objective compares some."""
WEIGHTS = {"clips": "world", "velocity": "model", "few_step": "few_step", "logits": "language"}
"""Teacher of a tiny recipe by what the objective needs of it."""


@torch.no_grad()
def save_video_network(path: Path, seed: int) -> None:
    """Write a video student with random weights that depend on `seed` only, see `VIDEO`."""
    from vidalign.students.video import VideoStudent, VideoStudentSpec

    network = VideoStudent.from_spec(VideoStudentSpec.from_dict(VIDEO), seed)
    # the stock head starts near zero
    network.base.proj_out.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    network.save(path)


@torch.no_grad()
def save_language_network(path: Path, seed: int, config: dict[str, Any]) -> None:
    """Write a language student with random weights of this seed; config: that of transformers, as in `LANGUAGE`."""
    from vidalign.students.language import LanguageStudent
    from vidalign.students.language_config import LanguageSpec

    student = LanguageStudent.from_spec(LanguageSpec.from_dict({"config": config}), seed)
    for parameter in student.parameters():  # with stock weights every token is as likely as every other
        if parameter.ndim > 1:
            parameter.mul_(8.0)
    student.save(path)


def tiny_recipe(name: str, needs: Any, folder: Path) -> dict[str, Any]:
    """The content of a recipe that gives the objective `name` what its `needs` say; weights lie in `folder`.

    Students of other kinds than ``video`` and ``language`` have no tiny network: name one in the overrides.
    """
    content: dict[str, Any] = {
        "objective": {"name": name, **({"group_size": GROUP} if needs.min_group > 1 else {})},
        "tracking": {"tensorboard": False, "panel": "none", "clips_every": 0},
        "engine": {"precision": "fp64"},
    }
    language = "video" not in needs.students
    content |= _language_sections(folder) if language else _video_sections(folder)
    if needs.teacher:
        content["teacher"] = {"name": WEIGHTS[needs.teacher]}
        if content["teacher"]["name"] != "world":
            content["teacher"]["path"] = str(folder / "teacher.safetensors")
    if needs.discriminator:
        content["rewards"] = {"discriminator": 1.0}
        content["discriminator"] = DISCRIMINATOR
    elif needs.rewards:
        names = ("exact_match",) if language else ("text_alignment", "motion_quality", "visual_quality")
        content["rewards"] = dict.fromkeys(names, 1.0)
    return content


DISCRIMINATOR = {"name": "spatiotemporal", "width": 16, "layers": 1, "warm_up": {"max_steps": 2, "prompts": 4}}
"""Section of the tiny discriminator."""


def _video_sections(folder: Path) -> dict[str, Any]:
    for seed, name in enumerate(("student", "teacher"), 1):
        if not (folder / f"{name}.safetensors").is_file():
            save_video_network(folder / f"{name}.safetensors", seed)
    return {"student": {"path": str(folder / "student.safetensors")}, "data": {"frames": 9}}


def _language_sections(folder: Path) -> dict[str, Any]:
    for seed, name in enumerate(("student", "teacher"), 1):
        if not (folder / f"{name}.safetensors").is_file():
            config = {**LANGUAGE["config"], "tie_word_embeddings": seed == 1}
            save_language_network(folder / f"{name}.safetensors", seed, config)
    student = {"name": "language", "path": str(folder / "student.safetensors"), "sampling": SAMPLING}
    return {"student": student, "data": {"prompts": "tokens:train", "eval_prompts": "tokens:held_out"}}
