"""Memory of one step of token distillation at the size of Qwen3-8B into 1.7B, and its speed where there is a GPU.

    python benchmarks/token_step.py

Peaks are those of `vidalign plan` for one GPU: the step is traced on tensors without values, responses as long as they
may be. On an accelerator the step is also run on weights of zeros (`measure_step`, once to warm up and once timed) and
the row has seconds, tokens a second and the measured peak. Models are folders with real configurations, the tokenizer
of the token world and a file of holes; nothing is downloaded. Writes the rows with command, seed, commit and machine to
`benchmarks/results/token_step.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vidalign.engine import distributed
from vidalign.provenance import commit, machine
from vidalign.recipe import load_recipe
from vidalign.students.language import LanguageStudent
from vidalign.workflows.plan import measure_step, plan_step

RESULT = Path(__file__).parent / "results" / "token_step.json"
SHARED: dict[str, Any] = dict(vocab_size=151936, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960)
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-1.7B": dict(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "Qwen3-8B": dict(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        tie_word_embeddings=False,
    ),
}
RECIPES = ("opsd", "opd", "dopd")


def write_models() -> None:
    """Folders ``Qwen/NAME`` in bf16, whose weights are a hole in a file."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    tokenizer = LanguageStudent.load("tokens/student").chat.tokenizer
    for name, sizes in MODELS.items():
        folder = Path("Qwen") / name
        config = Qwen3Config(**SHARED, **sizes, dtype="bfloat16", eos_token_id=2, pad_token_id=0)
        with torch.device("meta"):
            state = AutoModelForCausalLM.from_config(config).state_dict()
        if config.tie_word_embeddings:
            del state["lm_head.weight"]
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        header, at = {}, 0
        for key, value in state.items():
            size = 2 * value.numel()
            header[key] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with open(folder / "model.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    rows = [{"prompt": "a b c", "privileged": "a", "answer": "b"} for _ in range(64)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def row(name: str, prompts: int) -> dict[str, Any]:
    """Peaks of a recipe, and its speed on an accelerator."""
    words = ["data.prompts=rows.jsonl", "data.eval_prompts=rows.jsonl", f"trainer.prompts_per_step={prompts}"]
    recipe = load_recipe(f"qwen3/{name}", words)
    plan = plan_step(recipe)
    responses = prompts * recipe.objective.config.group_size
    length = recipe.student.config.sampling.max_new_tokens
    found: dict[str, Any] = {"recipe": f"qwen3/{name}", "responses": responses, "response_tokens": length}
    found |= {"planned_gb": {phase: round(size / 1e9, 2) for phase, size in plan.phases.items()}}
    if distributed.device().type != "cpu":
        measure_step(recipe, plan)
        started = time.perf_counter()
        real, _ = measure_step(recipe, plan)
        found["seconds"] = round(time.perf_counter() - started, 2)
        found["tokens_a_second"] = round(responses * length / found["seconds"])
        found["measured_gb"] = round(real.peak / 1e9, 2)
    return found


def main() -> None:
    """Measure every recipe and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32, help="prompts of a step, 4 responses each")
    asked = parser.parse_args()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            write_models()
            rows = [row(recipe, asked.prompts) for recipe in RECIPES]
        finally:
            os.chdir(before)
    document = {
        "command": f"python benchmarks/token_step.py --prompts {asked.prompts}",
        "seed": 0,
        "commit": commit(),
        "machine": machine(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
