"""One rank: `python token_worker.py FOLDER JOB...` trains token objectives; a job is OBJECTIVE:HEAD:KIND:ENGINE:WAY.

HEAD is tied, untied or pictures (the shipped vision-language student), KIND one of `KINDS`, ENGINE zero2 or zero3, WAY
straight or resumed. It writes FOLDER/JOB-rankN.json: the metrics of every step, and all weights at the end, whole.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidalign.callbacks import Callback
from vidalign.engine import deepspeed, distributed
from vidalign.losses import projected
from vidalign.objectives.parts import tokens
from vidalign.recipe import load_recipe
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec
from vidalign.trainer import Trainer

CONFIG: dict[str, Any] = dict(
    model_type="qwen3",
    vocab_size=102,
    hidden_size=16,
    head_dim=8,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=2,
    bos_token_id=None,
)
RECIPE = """
student: {{name: language, path: {student}, sampling: {{max_new_tokens: 8, stop: ['1', '2', '3']}}, {kind}}}
{teacher}
objective: {objective}
data: {{prompts: '{world}:train', eval_prompts: '{world}:held_out'}}
trainer: {{steps: 4, prompts_per_step: 4, micro_batch: 2, learning_rate: {rate}, optimizer: sgd, weight_decay: 0}}
engine: {{name: deepspeed, zero_stage: {stage}, precision: {precision}}}
tracking: {{tensorboard: false, panel: none, clips_every: 0}}
evaluation: {{count: 3}}
"""
OBJECTIVES = {
    "opd": "{name: opd, group_size: 2}",
    "gkd": "{name: gkd, group_size: 2}",
    "dopd": "{name: dopd, group_size: 2, top_k: 8}",
    "dopd_ema": "{name: dopd, group_size: 2, top_k: 8, student_target: ema, target_decay: 0.5}",
    "opsd": "{name: opsd, group_size: 2}",
    "opsd_frozen": "{name: opsd, group_size: 2, student_target: frozen}",
    "lm_sft": "{name: lm_sft, privileged_share: 0.5}",
}
KINDS = {
    "full": "adapter: null",
    "lora": "adapter: {rank: 4, alpha: 8}",
    "bf16": "adapter: {rank: 4, alpha: 8}",
    "every": "adapter: {rank: 4, alpha: 8, targets: ['*']}",
    "again": "adapter: null, checkpointing: true",
}
SAVED = 2
"""Steps before the checkpoint of a straight run."""


class Tokens(Callback):
    """Counts the response tokens of this rank, step by step."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def on_experience(self, trainer: Trainer, experience: Any) -> None:
        self.numbers.append(int(experience["response"].sum()))


def divide_everything() -> None:
    """DeepSpeed keeps small weights whole, and those that are used again soon; in networks of this size these are all,
    and nothing would be tested. Small chunks: their number differs between ranks."""
    projected.TABLE_BYTES = {"cpu": 1}
    tokens.projected_statistics = partial(projected.projected_statistics, rows=3)
    usual = deepspeed._settings

    def settings(*args: Any) -> dict[str, Any]:
        found = usual(*args)
        if found["zero_optimization"]["stage"] == 3:
            for name in ("param_persistence_threshold", "max_reuse_distance", "max_live_parameters"):
                found["zero_optimization"][f"stage3_{name}"] = 0
        return found

    deepspeed._settings = settings


def network(file: Path, seed: int, tied: bool) -> Path:
    """A network with confident answers, written once."""
    if distributed.rank() == 0 and not file.is_file():
        spec = LanguageSpec.from_dict({"config": CONFIG | {"tie_word_embeddings": tied}})
        student = LanguageStudent.from_spec(spec, seed)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
        student.save(file)
    distributed.barrier()
    return file


def train(folder: Path, job: str) -> dict[str, Any]:
    """Four steps, with a checkpoint after two; resumed: the last two from that checkpoint."""
    objective, head, kind, engine, way = job.split(":")
    world = "pictures" if head == "pictures" else "tokens"
    student, teacher = Path("pictures/student"), Path("pictures/teacher")
    if world == "tokens":
        student = network(folder / f"{head}.safetensors", 0, head == "tied")
        teacher = network(folder / "teacher.safetensors", 1, tied=True)
    has_teacher = not objective.startswith(("opsd", "lm_sft"))
    recipe = folder / f"{job.replace(':', '-')}-{distributed.rank()}.yaml"
    recipe.write_text(
        RECIPE.format(
            student=student,
            kind=KINDS[kind],
            teacher=f"teacher: {{name: language, path: {teacher}}}" if has_teacher else "",
            objective=OBJECTIVES[objective],
            world=world,
            rate=0.01 if world == "pictures" else 0.5,
            stage=engine.removeprefix("zero"),
            precision="bf16" if kind == "bf16" else "fp32",
        ),
        encoding="utf-8",
    )
    run = folder / "-".join(["run", *job.split(":")[:4]])
    trainer = Trainer(load_recipe(recipe), run, callbacks=[counted := Tokens()], resume=way == "resumed")
    steps = []
    while not trainer.done:
        logged = trainer.train_step()
        steps.append({k: v for k, v in logged.items() if not k.startswith("perf/")})
        if trainer.step == SAVED and way == "straight":
            trainer.save()
    steps.append(trainer.evaluate(3).health())
    root = trainer.ctx.roles.engines["student"].dispatch
    assert not getattr(root, "_external_params", {}), "the head would be gathered for every call of the student"
    whole = trainer.ctx.policies.weights("current")
    weights = {name: value.double().flatten().tolist() for name, value in whole.items()}
    trainer.tracker.close()
    return {"steps": steps, "weights": weights, "tokens": counted.numbers}


def main() -> None:
    folder, jobs = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    distributed.setup()
    divide_everything()
    for job in jobs:
        result = train(folder, job)
        (folder / f"{job}-rank{distributed.rank()}.json").write_text(json.dumps(result))
    distributed.shutdown()


if __name__ == "__main__":
    main()
