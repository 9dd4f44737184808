"""One rank: `python afd_worker.py FOLDER ENGINE...` trains AFD on tiny networks and writes FOLDER/ENGINE-rankN.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from vidalign.engine import distributed
from vidalign.recipe import load_recipe
from vidalign.trainer import Trainer

RECIPE = """
student:
  init:
    transformer: {patch_size: [1, 8, 8], num_attention_heads: 2, attention_head_dim: 16, in_channels: 3,
      out_channels: 3, text_dim: 64, freq_dim: 16, ffn_dim: 32, num_layers: 1, rope_max_seq_len: 64}
    prediction: x0
objective: {name: afd, group_size: 4, kl_weight: 0.1}
teacher: {name: world}
rewards: {discriminator: 1.0}
discriminator: {name: spatiotemporal, width: 16, layers: 1, held_out: 0.3, learning_rate: 0.1,
  warm_up: {max_steps: 2, prompts: 4}}
data: {prompts: world:basic/train, frames: 6}
trainer: {steps: 3, prompts_per_step: 4, micro_batch: 4, learning_rate: 0.1, optimizer: sgd, weight_decay: 0, clip: 0}
tracking: {tensorboard: false, panel: none, clips_every: 0}
"""
ENGINES = {
    "plain": "{name: plain, precision: fp64}",
    "fp32": "{name: plain}",
    "zero2": "{name: deepspeed, zero_stage: 2}",
    "zero3": "{name: deepspeed, zero_stage: 3}",
}


def train(folder: Path, engine: str) -> dict[str, object]:
    """Three steps; the trained weights of both roles by sum and norm, and what was logged last."""
    file = folder / f"{engine}-{distributed.rank()}.yaml"
    file.write_text(RECIPE + f"engine: {ENGINES[engine]}\n", encoding="utf-8")
    trainer = Trainer(load_recipe(file), folder / f"run-{engine}")
    metrics = [trainer.train_step() for _ in range(3)]
    weights = {}
    for role, owner in trainer.ctx.roles.engines.items():
        with owner.gathered(), torch.no_grad():
            for name, parameter in owner.network.named_parameters():
                flat = parameter.double().flatten()
                weights[f"{role}.{name}"] = [float(flat.sum()), float(flat.norm())]
    trainer.tracker.close()
    assert trainer.ctx.rewards is not None
    kept = {k: v for k, v in metrics[-1].items() if "discriminator" in k and "grad_norm" not in k}
    return {"weights": weights, "metrics": kept, "state": trainer.ctx.rewards.state_dict()}


def main() -> None:
    folder, engines = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    distributed.setup()
    for engine in engines:
        result = train(folder, engine)
        (folder / f"{engine}-rank{distributed.rank()}.json").write_text(json.dumps(result))
    distributed.shutdown()


if __name__ == "__main__":
    main()
