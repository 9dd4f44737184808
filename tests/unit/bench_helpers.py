"""A protocol, results and a student small enough to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from vidalign.bench.protocol import text_hash
from vidalign.bench.results import Cell, ProtocolStamp, Results
from vidalign.students.video import VideoStudent, VideoStudentSpec

TRANSFORMER = dict(
    patch_size=[1, 8, 8],
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=3,
    out_channels=3,
    text_dim=64,
    freq_dim=16,
    ffn_dim=32,
    num_layers=1,
    cross_attn_norm=True,
    rope_max_seq_len=64,
)
PROTOCOL = """\
# A protocol for a test. More words.
prompts: {source: world:basic/unseen, count: 3}
out_of_domain: {source: world:held_out_combinations, count: 2}
student: {path: student.safetensors}
budget: {currency: forwards, amount: 130}
seeds: [0]
objectives:
  astrolabe: {recipe: recipe.yaml}
metrics: {world_scorer: {}, drift: {chunk_frames: 3}}
evaluation: {frames: 6, seeds: [0, 1], long_factor: 2, long_prompts: 2, curve_points: 2, curve_prompts: 2, shown: 2}
health: {clips: 0}
small: {prompts: {count: 2}, budget: {amount: 70}}
"""
RECIPE = """\
# A recipe for a test.
student: {path: elsewhere.safetensors}
objective: {name: astrolabe, group_size: 2}
rewards: {text_alignment: 1.0}
data: {prompts: world:basic/train, eval_prompts: world:basic/unseen, frames: 6}
trainer: {steps: 400, prompts_per_step: 2, micro_batch: 4, learning_rate: 1.0e-2, save_every: 1, schedule: cosine}
"""


def make_folder(folder: Path) -> None:
    (folder / "p.yaml").write_text(PROTOCOL, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.replace("elsewhere", "student"), encoding="utf-8")
    make_student(folder / "student.safetensors")


def make_student(path: Path, **changes: Any) -> None:
    spec = VideoStudentSpec.from_dict({"transformer": TRANSFORMER, "prediction": "x0", **changes})
    student = VideoStudent.from_spec(spec, 1)
    with torch.no_grad():
        student.base.proj_out.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    student.save(path)


def make_cell(row: str, seed: int, values: list[float], kind: str = "objective", metric: str = "m/x") -> Cell:
    split = {"held_out": (0, len(values))}
    return Cell(row=row, kind=kind, seed=seed, metrics={metric: values}, prompt_split=split).sealed()


def make_results(cells: list[Cell], **pinned: Any) -> Results:
    text = yaml.safe_dump({"budget": {"amount": 1.0}} | pinned)
    prompts = [f"prompt {n}" for n in range(max(len(v) for c in cells for v in c.metrics.values()))]
    return Results(ProtocolStamp("p", text_hash(text), text), "world", "vidalign bench run p", {}, prompts, cells)
