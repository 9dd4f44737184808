"""A fake score that is a LoRA on the teacher's frozen weights: what it computes, what is trained, kept and held."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vidalign.build import build_context, build_objective
from vidalign.context import Batch, TrainContext
from vidalign.objectives.base import Experience, MicroBatch, Phase
from vidalign.objectives.baselines.dmd import DMD
from vidalign.recipe import load_recipe
from vidalign.recipe.load import Recipe
from vidalign.students.video import VideoStudent
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import Trainer
from vidalign.workflows.plan import plan_step
from vidalign.worlds.video import captions

RANK, ALPHA = 4, 6.0
ADAPTER = f"objective.fake_score.adapter={{rank: {RANK}, alpha: {ALPHA}}}"
SMALL = (
    "trainer={steps: 3, prompts_per_step: 2, micro_batch: 1, save_every: 1, warmup_steps: 0, keep: 9}",
    "data.frames=6",
    "evaluation={count: 1, frames: 6}",
    "objective.fake_score={updates: 2, learning_rate: 1.0e-2}",
    "tracking={tensorboard: false, panel: none, clips_every: 0}",
)
PROMPTS = captions.prompts("train")[:2]


def recipe(*words: str) -> Recipe:
    return load_recipe("world/student_dmd", [*SMALL, *words])


def context(*words: str) -> tuple[DMD, TrainContext, Experience]:
    made = recipe(*words)
    objective = build_objective(made)
    assert isinstance(objective, DMD)
    ctx = build_context(made, objective, Tracker.silent())
    with torch.no_grad():
        return objective, ctx, objective.collect(ctx, Batch(0, PROMPTS, [0, 1]))


def networks(ctx: TrainContext) -> tuple[VideoStudent, VideoStudent]:
    """The fake score and the teacher."""
    fake, teacher = ctx.roles.engines["fake_score"].network, ctx.roles._frozen["teacher"].network
    assert isinstance(fake, VideoStudent) and isinstance(teacher, VideoStudent)
    return fake, teacher


def linears(network: VideoStudent) -> dict[str, torch.nn.Linear]:
    """The linear layers of the blocks of a network without adapters."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: module for name, module in found.items() if ".blocks." in name}


def test_at_the_start_it_is_the_teacher() -> None:
    _, ctx, data = context(ADAPTER)
    fake, teacher = networks(ctx)
    x, sigma = data["latents"], torch.tensor([0.3, 0.8])
    with torch.no_grad():
        assert torch.equal(fake.bidirectional(x, sigma, data.text), teacher.bidirectional(x, sigma, data.text))


def test_only_the_adapter_is_trained_and_the_weights_are_held_once() -> None:
    _, ctx, _ = context(ADAPTER)
    fake, teacher = networks(ctx)
    engine = ctx.roles.engines["fake_score"]
    trained = engine.named_trainable()
    assert trained and all(".lora_" in name for name in trained)
    layers = linears(teacher).values()
    assert len(layers) == 10 * teacher.base.config.num_layers
    expected = sum(RANK * (layer.in_features + layer.out_features) for layer in layers)
    assert sum(p.numel() for p in trained.values()) == expected
    own = {p.data_ptr() for p in fake.parameters()} - {p.data_ptr() for p in trained.values()}
    assert own == {p.data_ptr() for p in teacher.parameters()}
    assert not any(".lora_" in name for name, _ in teacher.named_parameters())


def test_it_follows_the_seed_of_the_run() -> None:
    first, again, other = (networks(context(ADAPTER, f"seed={n}")[1])[0].state_dict() for n in (1, 1, 2))
    downs = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) for name in downs)
    assert not any(torch.equal(first[name], other[name]) for name in downs)


def fake_gradients(*words: str) -> tuple[dict[str, Tensor], VideoStudent]:
    """Gradients of the fake score's loss before its first update."""
    objective, ctx, data = context("engine.precision=fp64", *words)
    data.tensors |= {name: data[name].double() for name in ("x_t", "x0", "latents")}
    with ctx.roles.phase("fake_score") as engine:
        engine.backward(objective.loss(ctx, MicroBatch(data, 1.0), Phase("fake_score")).loss)
        found = {name: p.grad.clone() for name, p in engine.named_trainable().items() if p.grad is not None}
    return found, networks(ctx)[0]


def test_its_gradient_is_that_of_the_full_weights_projected() -> None:
    """W + s B A with B = 0: dL/dB = s dL/dW A^T, and dL/dA = 0. dL/dW is that of a full copy of the teacher."""
    full, _ = fake_gradients()
    low, network = fake_gradients(ADAPTER)
    factors = dict(network.named_parameters())
    ups = [name for name in low if ".lora_B." in name]
    assert len(ups) == len(low) / 2
    for name in ups:
        layer, _, rest = name.partition(".lora_B.")
        down = factors[f"{layer}.lora_A.{rest}"]
        expected = ALPHA / RANK * full[f"{layer}.weight"] @ down.T
        torch.testing.assert_close(low[name], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        assert low[f"{layer}.lora_A.{rest}"].abs().max() == 0
    assert max(float(low[name].abs().max()) for name in ups) > 1e-6


def test_training_it_leaves_the_teacher_alone(tmp_path: Path) -> None:
    trainer = Trainer(recipe(ADAPTER), tmp_path / "run")
    fake, teacher = networks(trainer.ctx)
    before = copy.deepcopy(teacher.state_dict())
    for _ in range(2):
        trainer.train_step()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    ups = [p for name, p in fake.named_parameters() if "lora_B" in name]
    assert all(p.abs().max() > 0 for p in ups)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_same(tmp_path: Path, precision: str) -> None:
    words = (ADAPTER, f"engine.precision={precision}")
    whole = Trainer(recipe(*words), tmp_path / "whole")
    whole.fit()
    part = Trainer(recipe(*words), tmp_path / "part")
    part.train_step()
    part.save()
    again = Trainer(recipe(*words), tmp_path / "part", resume=True)
    assert again.step == 1
    again.fit()
    for role, engine in whole.ctx.roles.engines.items():
        other = again.ctx.roles.engines[role].network.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in engine.network.state_dict().items())
    first, second = (load_file(tmp_path / run / "student.safetensors") for run in ("whole", "part"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert not any("lora" in name for name in first), "the student leaves as it always does"
    saved = torch.load(next(tmp_path.glob("part/**/fake_score/engine.pt")), weights_only=True)["weights"]
    assert all(".lora_" in name for name in saved), "a checkpoint holds the adapter alone"


@pytest.fixture
def init() -> str:
    """A student that is described, so that a step can be planned."""
    transformer = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 512, "num_layers": 4, "text_dim": 64}
    sizes = {"patch_size": [1, 8, 8], "in_channels": 3, "out_channels": 3, "freq_dim": 16, "rope_max_seq_len": 64}
    return f"student.init={json.dumps({'transformer': transformer | sizes, 'prediction': 'x0'})}"


def test_the_plan_counts_shared_weights_once(init: str) -> None:
    """Full: student, fake score, teacher. With the adapter the second goes, and with it its gradients and moments."""

    def held(*words: str) -> dict[str, int]:
        return plan_step(recipe("~student.path", init, "engine.precision=fp32", *words)).held

    full, low = held(), held(ADAPTER)
    weights, score, teacher = full["trained weights"], "weights of `fake_score`", "network of `teacher`"
    assert full[score] == full[teacher] == weights
    adapter = low[score] - weights
    assert 0 < adapter < 0.2 * weights and teacher not in low
    for name in ("optimiser", "optimiser of `fake_score`"):
        assert full[name] == pytest.approx(2 * weights, rel=0.01)
    assert low["optimiser"] == pytest.approx(2 * weights, rel=0.01)
    assert low["optimiser of `fake_score`"] == pytest.approx(2 * adapter, rel=0.01)
