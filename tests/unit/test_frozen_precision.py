"""Frozen weights under bf16: half the bytes, the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from student_reference import inputs, student
from torch import Tensor, nn

from vidalign.engine import base
from vidalign.engine.base import build_engine, set_precision
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.policies import Policies
from vidalign.recipe import load_recipe
from vidalign.students.video import CachePolicy
from vidalign.trainer import Trainer

BF16 = EngineConfig(precision="bf16")


def step(frozen_precision: str = "fp32") -> tuple[list[Tensor], Policies]:
    """Prediction and gradients of an adapted student under bf16, and its weight sets."""
    network = student(CachePolicy(chunk_frames=3))
    names = ("old", "ema")
    policies = Policies(network, names, AdapterConfig(rank=2, frozen_precision=frozen_precision))  # type: ignore[arg-type]
    engine = build_engine(BF16, OptimizerConfig(), network, 5, policies)
    engine.unfreeze()
    for n, parameter in enumerate(engine.trainable):
        nn.init.normal_(parameter.data, generator=torch.Generator().manual_seed(n), std=0.1)
    policies.copy("current", "old")
    x_t, clean, text = inputs(6)
    out = engine.view(own_phase=True).velocity(x_t, torch.full((len(x_t),), 0.5), text, clean=clean)
    engine.backward(out.square().mean())
    gradients = [p.grad for p in engine.trainable if p.grad is not None]
    with torch.no_grad(), policies.use("old"):
        old = engine.view(own_phase=True).velocity(x_t, torch.full((len(x_t),), 0.5), text, clean=clean)
    return [out.detach(), old, *gradients], policies


def test_a_frozen_base_in_bf16_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast casts these weights at every use; a base in fp32 is what `CAST` without layers leaves."""
    low, _ = step()
    monkeypatch.setattr(base, "CAST", ())
    high, _ = step()
    assert len(low) > 20 and all(map(torch.equal, low, high))


def test_old_adapters_in_bf16_give_the_same_bits_and_the_average_stays_fp32() -> None:
    results, policies = step("bf16")
    assert all(map(torch.equal, results, step()[0]))
    assert policies.nbytes("old") == policies.nbytes("current") / 2
    assert policies.nbytes("ema") == policies.nbytes("current")


def test_layers_and_norms_under_bf16() -> None:
    """Norms and tables stay fp32; so does a weight that an embedding shares with the last layer."""
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 5, bias=False))
    network[3].weight = network[0].weight
    set_precision(network.requires_grad_(False), "bf16")
    dtypes = {name: p.dtype for name, p in network.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == {"1.weight", "1.bias"}


def test_a_run_under_bf16_saves_a_student_in_fp32(tmp_path: Path) -> None:
    """With an evaluation on the way, which samples the student outside of its engine."""
    settings = ["engine.precision=bf16", "student.adapter={rank: 2}", "trainer={steps: 1, prompts_per_step: 1}"]
    settings += ["trainer.micro_batch=6", "trainer.eval_every=1", "evaluation={count: 1, seeds: 1}"]
    trainer = Trainer(
        load_recipe("world/astrolabe", [*settings, "tracking={panel: none, tensorboard: false}"]), tmp_path
    )
    before = trainer.ctx.policies.weights("base")
    trainer.fit()
    assert {weight.dtype for weight in before.values()} == {torch.float32}
    low = [p for p in trainer.ctx.policies.network.parameters() if p.dtype == torch.bfloat16]
    assert low and (tmp_path / "student.safetensors").is_file()
