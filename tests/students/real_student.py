"""A public checkpoint at a tiny size, its base, the student made of it and runs that train it."""

from __future__ import annotations

from pathlib import Path

import tiny_pipeline
import tiny_wan
import torch
from diffusers import WanTransformer3DModel
from run_helpers import BRIGHTNESS, vidalign

RECIPE = """\
# A recipe for a test. Deviations from paper: it is tiny.
student: {path: student}
objective: {name: astrolabe, group_size: 2}
rewards: {brightness: 1.0}
data: {prompts: prompts.txt, eval_prompts: prompts.txt, frames: 3}
trainer: {steps: 2, prompts_per_step: 1, micro_batch: 2, learning_rate: 1.0e-2, save_every: 1, keep: 9}
tracking: {panel: none, clips_every: 0, tensorboard: false}
evaluation: {count: 1, frames: 3}
"""
ADAPTER = "student.adapter={rank: 4, alpha: 8, targets: TARGETS}"


def prepare(folder: Path) -> None:
    """In the current folder: `base`, `public.pt`, the imported `student`, `recipe.yaml`, prompts and a reward."""
    network = tiny_wan.network()
    tiny_pipeline.save_base(folder / "base", network)
    tiny_wan.save(folder / "public.pt", {"generator_ema": tiny_wan.weights(network, "model.")})
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "prompts.txt").write_text("red ball falls\nblue square moves\n", encoding="utf-8")
    (folder / "brightness.py").write_text(BRIGHTNESS, encoding="utf-8")
    base, size = ("--base", "base"), ("--height", "32", "--width", "32")
    assert vidalign("import", "self_forcing", "--checkpoint", "public.pt", *base, *size, "--out", "student") == 0


def train(run: str, *changes: str) -> int:
    return vidalign("train", "recipe.yaml", "--run", run, "--plugin", "brightness.py", *changes)


@torch.no_grad()
def output(network: WanTransformer3DModel) -> torch.Tensor:
    """What a network makes of fixed inputs."""
    numbers = torch.Generator().manual_seed(3)
    x, text = torch.randn(1, 16, 2, 4, 4, generator=numbers), torch.randn(1, 6, 48, generator=numbers)
    return network.eval()(x, torch.tensor([500.0]), text, return_dict=False)[0]
