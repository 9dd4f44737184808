"""How much of a LoRA's update each way of saving keeps, where the base is stored in bf16, as language models are.

    python benchmarks/update_kept.py

Trains the student of the token world by `tokens/opsd` (hints as privilege) from a transformers folder in bf16, with the
settings of `RUNS`, and compares what each file adds to the base with the update that was trained: the share is
``<saved, trained> / <trained, trained>`` over all adapted layers, 1 where all of it is there. Writes the rows with
command, seed, commit and machine to `benchmarks/results/update_kept.json`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vidalign.provenance import commit, machine
from vidalign.recipe import load_recipe
from vidalign.students.language import LanguageStudent
from vidalign.students.rounding import rounding
from vidalign.trainer import Trainer
from vidalign.workflows.export import export_run

RESULT = Path(__file__).parent / "results" / "update_kept.json"
SEED, RANK = 0, 8
RUNS = ((5e-6, 10), (1e-5, 20), (1e-4, 20))
"""Learning rate and steps."""
Weights = dict[str, torch.Tensor]


def base(folder: Path) -> None:
    """The shipped student as a transformers folder in bf16."""
    student = LanguageStudent.load("tokens/student").bfloat16()
    student.model.save_pretrained(folder)
    student.chat.tokenizer.save_pretrained(folder)


def train(start: Path, run: Path, rate: float, steps: int, save_dtype: str) -> None:
    """A run of `tokens/opsd` with an adapter."""
    words = [f"student.path={start}", f"student.adapter={{rank: {RANK}, alpha: {RANK}}}", f"seed={SEED}"]
    words += [f"trainer.learning_rate={rate}", f"trainer.steps={steps}", f"trainer.save_dtype={save_dtype}"]
    words += [
        "trainer.prompts_per_step=4",
        "engine.precision=fp32",
        "tracking.tensorboard=false",
        "trainer.eval_every=0",
    ]
    Trainer(load_recipe("tokens/opsd", words), run).fit()


def kept(start: Weights, trained: Weights, saved: Weights) -> float:
    """Share of the update that is in saved weights."""
    whole = part = 0.0
    for name, before in start.items():
        update = trained[name].double() - before.double()
        part += float(((saved[name].double() - before.double()) * update).sum())
        whole += float(update.square().sum())
    return part / whole


def adapted(start: Weights, adapter: Path) -> Weights:
    """The weights with the adapter of a PEFT folder, in float64."""
    factors = load_file(adapter / "adapter_model.safetensors")
    scale = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] / RANK
    out = {name: value.double() for name, value in start.items()}
    for name in factors:
        if ".lora_A." in name:
            down, up = factors[name].double(), factors[name.replace("lora_A", "lora_B")].double()
            out[f"{name.removeprefix('base_model.model.').removesuffix('.lora_A.weight')}.weight"] += scale * up @ down
    return out


def measure(folder: Path) -> list[dict[str, Any]]:
    """A row for every setting and path."""
    base(folder / "base")
    start, rows = load_file(folder / "base" / "model.safetensors"), []
    for n, (rate, steps) in enumerate(RUNS):
        runs = {dtype: folder / f"{n}-{dtype}" for dtype in ("float32", "bfloat16")}
        for dtype, run in runs.items():
            train(folder / "base", run, rate, steps, dtype)
        run = runs["float32"]
        trained = adapted(start, run / "adapter")
        whole, low = (
            export_run(run, folder / f"{n}-{form}", "bfloat16", form=form).path for form in ("transformers", "peft")
        )
        paths = {
            "RUN/student": load_file(run / "student" / "model.safetensors"),
            "RUN/student with save_dtype bfloat16": load_file(runs["bfloat16"] / "student" / "model.safetensors"),
            "export --to transformers --dtype bfloat16": load_file(whole / "model.safetensors"),
            "RUN/adapter": trained,
            "export --to peft --dtype bfloat16": adapted(start, low),
        }
        rows += [
            {"rate": rate, "steps": steps, "path": p, "kept": round(kept(start, trained, w), 4)}
            for p, w in paths.items()
        ]
        printed = rounding(start, load_file(run / "student" / "model.safetensors").items(), torch.bfloat16)
        assert printed is not None and abs(1 - printed.lost - rows[-3]["kept"]) < 1e-3, "what the command prints"
    return rows


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name))
    document = {
        "command": "python benchmarks/update_kept.py",
        "seed": SEED,
        "commit": commit(),
        "machine": machine(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
