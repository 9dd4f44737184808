"""Objectives on networks of one layer, and the ways in which the tests look at them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidalign import registry
from vidalign.build import build_context, build_objective
from vidalign.context import Batch, TrainContext
from vidalign.objectives.base import Experience, LossOut, MicroBatch, Objective, Phase
from vidalign.objectives.parts.reduction import reduce_metrics, weighted_metrics
from vidalign.recipe import load_recipe
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import judge_experience
from vidalign.worlds.video import captions

BUILT_IN = [name for name, source in registry.names("objectives").items() if source == "vidalign"]
NAMES = [name for name in BUILT_IN if "video" in registry.get("objectives", name).needs.students]
TRANSFORMER = dict(
    patch_size=[1, 8, 8],
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=3,
    out_channels=3,
    text_dim=64,
    freq_dim=16,
    ffn_dim=32,
    num_layers=1,
    cross_attn_norm=True,
    rope_max_seq_len=64,
)
PROMPTS = list(captions.prompts("basic/train")[:2])
CHUNK, GROUP = 3, 4


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_network(path: Path, seed: int) -> None:
    spec = VideoStudentSpec.from_dict({"transformer": TRANSFORMER, "prediction": "x0"})
    network = VideoStudent.from_spec(spec, seed)
    with torch.no_grad():  # the stock head starts near zero
        network.base.proj_out.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    network.save(path)


def sections(folder: Path, name: str) -> str:
    """A recipe that gives the objective what it needs."""
    needs = registry.get("objectives", name).needs
    lines = [
        f"student: {{path: {folder}/student.safetensors}}",
        f"objective: {{name: {name}" + (f", group_size: {GROUP}" if needs.min_group > 1 else "") + "}",
        "data: {frames: 9}",
        "tracking: {tensorboard: false, panel: none, clips_every: 0}",
        "engine: {precision: fp64}",
    ]
    if needs.teacher:
        kind = {"velocity": "model", "few_step": "few_step"}.get(needs.teacher, "world")
        path = f", path: {folder}/teacher.safetensors" if kind != "world" else ""
        lines.append(f"teacher: {{name: {kind}{path}}}")
    if needs.discriminator:
        lines.append("rewards: {discriminator: 1.0}")
        lines.append("discriminator: {name: spatiotemporal, width: 16, layers: 1, warm_up: {max_steps: 2, prompts: 4}}")
    elif needs.rewards:
        lines.append("rewards: {text_alignment: 1.0, motion_quality: 1.0, visual_quality: 1.0}")
    return "\n".join(lines) + "\n"


def make(folder: Path, name: str, *overrides: str) -> tuple[Objective, TrainContext]:
    file = folder / f"{name}.yaml"
    file.write_text(sections(folder, name), encoding="utf-8")
    recipe = load_recipe(file, list(overrides))
    objective = build_objective(recipe)
    return objective, build_context(recipe, objective, Tracker.silent())


def collect(objective: Objective, ctx: TrainContext, prompts: Sequence[str] = PROMPTS) -> Experience:
    with torch.no_grad():
        data = objective.collect(ctx, Batch(ctx.step, list(prompts), list(range(len(prompts)))))
        return judge_experience(ctx, objective, data)


def network_of(ctx: TrainContext, role: str = "student") -> Any:
    return ctx.roles.engines[role].network


@torch.no_grad()
def nudge(network: nn.Module, scale: float = 0.02) -> None:
    """Move the trained weights, as an optimiser step would."""
    for n, parameter in enumerate(network.parameters()):
        parameter += scale * numbers(*parameter.shape, seed=n).to(parameter.dtype)


def whole(objective: Objective, ctx: TrainContext, data: Experience, role: str = "student") -> LossOut:
    """The loss of all samples in one piece."""
    phase = next(p for p in objective.phases(ctx.step) if p.role == role)
    with ctx.roles.phase(role):
        return objective.loss(ctx, MicroBatch(data, 1.0), phase)


def logged(objective: Objective, ctx: TrainContext, data: Experience, phase: Phase, size: int) -> dict[str, float]:
    """What the trainer logs of a phase in micro-batches of `size`."""
    ctx.micro_batch, gathered = size, defaultdict(list)
    with ctx.roles.phase(phase.role), torch.no_grad():
        for piece in objective.micro_batches(ctx, data, phase):
            for name, pair in weighted_metrics(objective.loss(ctx, piece, phase), piece.weight).items():
                gathered[name].append(pair)
    return reduce_metrics(gathered)


def accumulate(
    objective: Objective, ctx: TrainContext, data: Experience, phase: Phase, size: int
) -> tuple[float, dict[str, Tensor], int]:
    """Weighted sum of the losses of all micro-batches, its gradient, and their number."""
    ctx.micro_batch = size
    total, pieces = 0.0, list(objective.micro_batches(ctx, data, phase))
    assert sum(piece.weight for piece in pieces) == pytest.approx(1.0)
    assert all(len(piece.data) <= size for piece in pieces)
    with ctx.roles.phase(phase.role) as engine:
        for piece in pieces:
            loss = objective.loss(ctx, piece, phase).loss * piece.weight
            engine.backward(loss)
            total += float(loss.detach())
        found = {name: p.grad.clone() for name, p in engine.named_trainable().items() if p.grad is not None}
    return total, found, len(pieces)
