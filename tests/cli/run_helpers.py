"""Training runs on a tiny network through the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vidalign import cli
from vidalign.trainer import Trainer

RECIPE = """\
# A recipe for a test.
student:
  init:
    transformer: {patch_size: [1, 8, 8], num_attention_heads: 2, attention_head_dim: 16, in_channels: 3,
      out_channels: 3, text_dim: 64, freq_dim: 16, ffn_dim: 32, num_layers: 1, rope_max_seq_len: 64}
    prediction: x0
objective: {name: astrolabe, group_size: 2}
rewards: {text_alignment: 1.0, visual_quality: 1.0}
data: {prompts: world:basic/train, eval_prompts: world:basic/unseen, frames: 9}
trainer: {steps: 4, prompts_per_step: 2, micro_batch: 2, learning_rate: 1.0e-2, save_every: 1}
tracking: {panel: none, clips_every: 0, tensorboard: false}
evaluation: {count: 2, frames: 9}
"""
BRIGHTNESS = """\
from vidalign.registry import register

@register("rewards", "brightness")
class Brightness:
    name = "brightness"

    def score(self, clips, prompts):
        return {"brightness": clips.mean((1, 2, 3, 4))}
"""
"""A plugin file with a reward that judges the clip of any prompt."""
FINISHED = ("trainer.steps=2", "tracking.tensorboard=true", "tracking.clips_every=1", "trainer.eval_every=2")
SFT = ("objective={name: sft}", "rewards={}", "teacher.name=world")


def vidalign(*arguments: str) -> int:
    try:
        cli.main(list(arguments))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def train(*arguments: str, run: str = "run") -> int:
    return vidalign("train", "recipe.yaml", "--run", run, *arguments)


def student(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/student.safetensors")


def assert_same_student(run: str, other: str) -> None:
    found, expected = student(run), student(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the step after `step`."""
    plain_step = Trainer.train_step

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step == step:
            raise KeyboardInterrupt
        return plain_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)


def damage(file: Path) -> None:
    """Cut a file in half, as a killed copy would."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def edit_manifest(run: Path, step: int, **values: Any) -> None:
    """Change entries of a checkpoint's manifest."""
    file = run / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def started(*arguments: str) -> subprocess.Popen[str]:
    """`vidalign serve` in a process of its own."""
    command = [sys.executable, "-m", "vidalign.cli", "serve", *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)


def address(process: subprocess.Popen[str]) -> str:
    """Waits until the reward is loaded."""
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.stderr.read()
    return found[0]
