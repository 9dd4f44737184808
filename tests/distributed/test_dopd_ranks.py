"""dopd on two processes is dopd on one: thresholds over all ranks, token means over the global batch."""

from __future__ import annotations

import json
from pathlib import Path

import launch as launcher
import pytest
import torch
from command_worker import run as run_command

from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec
from vidalign.tracking.jsonl import read_records

CONFIG = dict(
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
    tie_word_embeddings=True,
)
RECIPE = """
student:
  name: language
  path: {folder}/student.safetensors
  sampling: {{max_new_tokens: 8, stop: ['1', '2', '3']}}
  adapter: {adapter}
teacher: {{name: language, path: {folder}/teacher.safetensors}}
objective: {objective}
data: {{prompts: 'tokens:train', eval_prompts: 'tokens:held_out'}}
trainer: {{steps: 2, prompts_per_step: 4, micro_batch: 2, learning_rate: 1.0e-3}}
engine: {engine}
tracking: {{tensorboard: false, panel: none, clips_every: 0}}
evaluation: {{count: 1}}
"""


DOPD = "{name: dopd, group_size: 2, top_k: 8}"
SHUFFLED = "{name: dopd, group_size: 2, top_k: 8, privilege: shuffled}"
OPD = "{name: opd, group_size: 2}"
LORA = "{rank: 4, alpha: 8}"
ZERO2 = "{name: deepspeed, zero_stage: 2, precision: fp32}"


CASES = {
    "shuffled": (SHUFFLED, "", "null"),
    "zero2-full": (DOPD, ZERO2, "null"),
    "zero2-lora": (DOPD, ZERO2, LORA),
    "opd-zero2-lora": (OPD, ZERO2, LORA),
}
"""Objective, engine of the two processes, adapter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on one process, which is this one, and on two, which run all of them."""
    folder = tmp_path_factory.mktemp("dopd")
    for seed, name in enumerate(("student", "teacher")):
        network = LanguageStudent.from_spec(LanguageSpec.from_dict({"config": CONFIG}), seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
        network.save(folder / f"{name}.safetensors")
    for name, (objective, engine, adapter) in CASES.items():
        for size, own in ((1, "{precision: fp64}"), (2, engine or "{precision: fp64}")):
            recipe, run = folder / f"{name}{size}.yaml", folder / f"{name}-run{size}"
            text = RECIPE.format(folder=folder, objective=objective, adapter=adapter, engine=own)
            recipe.write_text(text, encoding="utf-8")
            words = ["train", str(recipe), "--run", str(run)]
            (folder / f"{name}.json").write_text(json.dumps(words), encoding="utf-8")
            if size == 1:
                code, errors = run_command(words)
                assert code == 0, errors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "WORKER", Path(__file__).with_name("command_worker.py"))
        launcher.launch(2, folder, *CASES)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_route_and_learn_as_one(name: str, folder: Path) -> None:
    """Two processes, with ZeRO where it is named, against one of the plain engine in fp64."""
    objective, engine, _ = CASES[name]
    for rank in (0, 1):
        code, errors = launcher.results(folder, name, rank)
        assert code == 0, errors
    one, two = (
        [r for r in read_records(folder / f"{name}-run{size}" / "metrics.jsonl") if r["kind"] == "metrics"]
        for size in (1, 2)
    )
    assert len(one) == len(two) == 2
    names = ["loss"]
    if "dopd" in objective:
        names += ["gap", "gap_threshold", "confidence_threshold", "share_lh", "share_hs", "gap_from_0.3"]
    keys = [f"objective/{measured}/mean" for measured in names]
    for a, b in zip(one, two, strict=True):
        for key in keys:
            assert b[key] == pytest.approx(a[key], rel=1e-3 if engine else 1e-4, abs=1e-6 if engine else 1e-9), key
        assert b["health/grad_norm/mean"] == pytest.approx(a["health/grad_norm/mean"], rel=1e-3 if engine else 1e-4)
    assert one[0]["objective/loss/mean"] > 1e-4
    files = (folder / "student.safetensors", folder / f"{name}-run1" / "student")
    student, trained = (LanguageStudent.load(file).state_dict() for file in files)
    assert any((student[key] != value).any() for key, value in trained.items()), "the second step trains on the first"
