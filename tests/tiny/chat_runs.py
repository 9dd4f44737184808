"""Recipes of tiny language runs on folders of `chat_families`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS = [
    {"prompt": f"Solve x + {n}", "response": f"x = {n}", "privileged": f"subtract {n}", "answer": str(n)}
    for n in range(6)
]


def write_table(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """A table of questions."""
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS), encoding="utf-8")
    return table


def write_recipe(
    folder: Path, student: str, objective: str = "lm_sft", teacher: str = "", rows: list[dict[str, Any]] | None = None
) -> Path:
    """student, teacher: their further settings, in YAML's flow style."""
    table, file = write_table(folder, rows), folder / "recipe.yaml"
    lines = [
        "# A tiny run.",
        f"student: {{name: language, sampling: {{max_new_tokens: 4}}, {student}}}",
        *([f"teacher: {{name: language, {teacher}}}"] if teacher else []),
        f"objective: {{name: {objective}}}",
        f"data: {{prompts: {table}, eval_prompts: {table}}}",
        "trainer: {steps: 1, prompts_per_step: 4, micro_batch: 2, learning_rate: 0.001}",
        "evaluation: {count: 2}",
        "tracking: {tensorboard: false, panel: none}",
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
