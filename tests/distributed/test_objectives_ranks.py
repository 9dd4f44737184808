"""AR-CoPO on two processes trains the student of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidalign.recipe import load_recipe
from vidalign.tracking.jsonl import History, read_history
from vidalign.trainer import Trainer

ROOT = Path(__file__).parents[2]
RECIPE = """\
# A recipe for a test.
student:
  init:
    transformer: {patch_size: [1, 8, 8], num_attention_heads: 2, attention_head_dim: 16, in_channels: 3,
      out_channels: 3, text_dim: 64, freq_dim: 16, ffn_dim: 32, num_layers: 1, rope_max_seq_len: 64}
    prediction: x0
objective: {name: ar_copo, group_size: 4}
rewards: {text_alignment: 1.0, visual_quality: 1.0}
data: {prompts: world:basic/train, eval_prompts: world:basic/unseen, frames: 6}
trainer: {steps: 2, prompts_per_step: 4, micro_batch: 16, optimizer: sgd, learning_rate: 10.0, clip: 0.0, save_every: 9}
engine: {precision: fp64}
tracking: {panel: none, clips_every: 0, tensorboard: false}
evaluation: {count: 1, frames: 6}
"""


def on_two_ranks(folder: Path) -> dict[str, torch.Tensor]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    run = folder / "two"
    command = [sys.executable, "-m", "vidalign.cli", "train", str(folder / "recipe.yaml"), "--run", str(run)]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = os.environ | shared | group
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    try:
        for process in processes:
            _, told = process.communicate(timeout=300)
            assert process.returncode == 0, told.decode()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return load_file(run / "student.safetensors")


def _assert_same_log(one: History, two: History) -> None:
    """Means and largest values are those of all ranks; what is measured only on one rank would differ."""
    names = [name for name in one if not name.startswith("perf/") and "on_policy" not in name]
    assert {"health/motion/mean", "reward/mean", "objective/loss/mean"} <= set(names)
    for name in names:
        for (step, value), (other, found) in zip(one[name], two[name], strict=True):
            assert step == other and found == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_two_processes_train_the_student_of_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    two = on_two_ranks(tmp_path)
    trainer = Trainer(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "one")
    before = {name: value.clone() for name, value in trainer.ctx.student.base.state_dict().items()}
    one = load_file(trainer.fit() / "student.safetensors")
    _assert_same_log(read_history(tmp_path / "one" / "metrics.jsonl"), read_history(tmp_path / "two" / "metrics.jsonl"))
    moved = max(float((one[name] - value).abs().max()) for name, value in before.items())
    apart = max(float((one[name] - value).abs().max()) for name, value in two.items())
    assert moved > 1e-4 and apart < 1e-3 * moved
