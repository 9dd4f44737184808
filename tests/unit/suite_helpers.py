"""A tiny recipe and prompt file from which the tests of benchmark suites make videos."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from vidalign.build import build_student
from vidalign.recipe import Recipe, load_recipe
from vidalign.students.video import VideoStudent
from vidalign.worlds.video import captions

RECIPE = {
    "student": {
        "init": {
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
                "rope_max_seq_len": 64,
            },
            "prediction": "x0",
        }
    },
    "objective": {"name": "sft"},
    "teacher": {"name": "world"},
    "data": {"prompts": "world:basic/train", "eval_prompts": "world:basic/unseen", "frames": 6},
    "evaluation": {"frames": 6},
}
ONE, TWO, THREE = list(captions.prompts("held_out"))[:3]
FULL_INFO = [
    {"prompt_en": ONE, "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {"prompt_en": TWO, "dimension": ["temporal_flickering"]},
    {"prompt_en": ONE, "dimension": ["overall_consistency", "aesthetic_quality"]},
]


def recipe_and_student(folder: Path) -> tuple[Recipe, VideoStudent]:
    file = folder / "tiny.yaml"
    file.write_text("# A recipe for a test.\n" + yaml.safe_dump(RECIPE), encoding="utf-8")
    recipe = load_recipe(file)
    return recipe, build_student(recipe)


def write_full_info(folder: Path) -> Path:
    file = folder / "VBench_full_info.json"
    file.write_text(json.dumps(FULL_INFO), encoding="utf-8")
    return file


def content(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
