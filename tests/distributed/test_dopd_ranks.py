"""dopd on two processes is dopd on one: thresholds over all ranks, token means over the global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec
from vidalign.tracking.jsonl import read_records

ROOT = Path(__file__).parents[2]
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


def train(folder: Path, size: int) -> list[dict[str, float]]:
    """Metrics of every step of a run on `size` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run, ranks = folder / f"run{size}", []
    for rank in range(size):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if size > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "vidalign.cli", "train", str(folder / "recipe.yaml"), "--run", str(run)]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    for process in ranks:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-3000:]
    return [r for r in read_records(run / "metrics.jsonl") if r["kind"] == "metrics"]


DOPD = "{name: dopd, group_size: 2, top_k: 8}"
SHUFFLED = "{name: dopd, group_size: 2, top_k: 8, privilege: shuffled}"
OPD = "{name: opd, group_size: 2}"
LORA = "{rank: 4, alpha: 8}"
ZERO2 = "{name: deepspeed, zero_stage: 2, precision: fp32}"


@pytest.mark.parametrize(
    ("objective", "engine", "adapter"),
    [(SHUFFLED, "", "null"), (DOPD, ZERO2, "null"), (DOPD, ZERO2, LORA), (OPD, ZERO2, LORA)],
    ids=["shuffled", "zero2-full", "zero2-lora", "opd-zero2-lora"],
)
def test_two_processes_route_and_learn_as_one(objective: str, engine: str, adapter: str, tmp_path: Path) -> None:
    """Two processes, with ZeRO where it is named, against one of the plain engine in fp64."""
    for seed, name in enumerate(("student", "teacher")):
        network = LanguageStudent.from_spec(LanguageSpec.from_dict({"config": CONFIG}), seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
        network.save(tmp_path / f"{name}.safetensors")
    runs = []
    for size, own in ((1, "{precision: fp64}"), (2, engine or "{precision: fp64}")):
        text = RECIPE.format(folder=tmp_path, objective=objective, adapter=adapter, engine=own)
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        runs.append(train(tmp_path, size))
    one, two = runs
    assert len(one) == len(two) == 2
    names = ["loss"]
    if "dopd" in objective:
        names += ["gap", "gap_threshold", "confidence_threshold", "share_lh", "share_hs", "gap_from_0.3"]
    for a, b in zip(one, two, strict=True):
        for name in names:
            key = f"objective/{name}/mean"
            assert b[key] == pytest.approx(a[key], rel=1e-3 if engine else 1e-4, abs=1e-6 if engine else 1e-9), key
        assert b["health/grad_norm/mean"] == pytest.approx(a["health/grad_norm/mean"], rel=1e-3 if engine else 1e-4)
    assert one[0]["objective/loss/mean"] > 1e-4
    files = (tmp_path / "student.safetensors", tmp_path / "run1" / "student")
    student, trained = (LanguageStudent.load(file).state_dict() for file in files)
    assert any((student[name] != value).any() for name, value in trained.items()), "the second step trains on the first"
