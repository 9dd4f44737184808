"""What the CPU computes, the accelerator computes too: rollouts, every objective's loss and gradient, every engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import language_objective_helpers as language
import objective_helpers as video
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vidalign import registry
from vidalign.context import Batch, TrainContext
from vidalign.engine import distributed
from vidalign.objectives.base import MicroBatch, Objective
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import Sampling
from vidalign.students.video import VideoStudent
from vidalign.students.video.rollout import RolloutPlan
from vidalign.testing.recipes import save_video_network
from vidalign.text.pretrained import build_text_encoder
from vidalign.trainer import judge_experience
from vidalign.worlds.video import captions

PLACES = ("cpu", "cuda")
EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin_objective"
ENGINES = {
    "zero1": ("engine.name=deepspeed", "engine.zero_stage=1"),
    "zero2": ("engine.name=deepspeed", "engine.zero_stage=2"),
    "zero3": ("engine.name=deepspeed", "engine.zero_stage=3"),
    "offload": ("engine.name=deepspeed", "engine.zero_stage=2", "engine.offload=optimizer"),
}
SHORT = (
    "trainer.steps=3",
    "trainer.prompts_per_step=2",
    "objective.group_size=4",
    "trainer.micro_batch=4",
    "trainer.eval_every=0",
    "trainer.save_every=2",
    "evaluation.count=2",
    "tracking.panel=none",
    "tracking.clips_every=0",
    "tracking.tensorboard=false",
)
SGD = ("trainer.optimizer=sgd", "trainer.learning_rate=1.0", "trainer.clip=0", "engine.precision=fp32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {kind: tmp_path_factory.mktemp(kind) for kind in ("video", "language")}
    for seed, name in enumerate(("student.safetensors", "teacher.safetensors"), 1):
        save_video_network(found["video"] / name, seed)
        language.make_student(found["language"] / name, seed, tied=seed == 1)
    return found


def step(objective: Objective, ctx: TrainContext, prompts: list[Any]) -> dict[str, float]:
    """Losses and norms of gradients by role; a policy gradient's loss is nought at first, its advantages cancel."""
    with torch.no_grad():
        data = objective.collect(ctx, Batch(0, prompts, list(range(len(prompts)))))
        data = judge_experience(ctx, objective, data)
    found = {}
    for phase in objective.phases():
        with ctx.roles.phase(phase.role) as engine:
            loss = objective.loss(ctx, MicroBatch(data, 1.0), phase).loss
            engine.backward(loss)
            norms = [p.grad.double().norm() for p in engine.named_trainable().values() if p.grad is not None]
            found[f"{phase.role} loss"] = float(loss.detach())
            found[f"{phase.role} gradient"] = float(torch.stack(norms).norm())
            assert loss.device.type == distributed.device().type
    return found


@pytest.mark.parametrize("name", video.NAMES)
def test_a_video_objective_is_the_cpus(name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for place in PLACES:
        monkeypatch.setattr(distributed, "device", lambda place=place: torch.device(place))
        objective, ctx = video.make(folders["video"], name)
        found.append(step(objective, ctx, video.PROMPTS))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-6) and any(found[0].values())


def test_the_example_plugin_is_the_cpus(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.syspath_prepend(EXAMPLE)
    from vidalign_best_of_n import BestOfN

    registry.register("objectives", "third_party")(BestOfN)
    found = []
    for place in PLACES:
        monkeypatch.setattr(distributed, "device", lambda place=place: torch.device(place))
        objective, ctx = video.make(folders["video"], "third_party")
        found.append(step(objective, ctx, video.PROMPTS))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-6) and any(found[0].values())


@pytest.mark.parametrize("name", language.NAMES)
def test_a_token_objective_is_the_cpus(name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for place in PLACES:
        monkeypatch.setattr(distributed, "device", lambda place=place: torch.device(place))
        objective, ctx = language.make(folders["language"], name)
        found.append(step(objective, ctx, language.examples(4)))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-6) and any(found[0].values())


def roll(place: str, dtype: torch.dtype) -> Tensor:
    student = VideoStudent.load("world/student", place, dtype)
    plan = RolloutPlan(prefix=1, branch=1, suffix=1, group_size=2)
    noise = student.draw_noise(plan, [torch.Generator().manual_seed(i) for i in range(2)])
    text = build_text_encoder(student.spec.text).encode(list(captions.prompts("basic/train")[:2]))
    return student.rollout(text.to(place, dtype), plan, noise).latents.double().cpu()


def test_a_rollout_is_the_cpus() -> None:
    exact = roll("cpu", torch.float64)
    torch.testing.assert_close(roll("cuda", torch.float64), exact, rtol=0, atol=1e-4)  # some tables are fp32
    assert (roll("cuda", torch.float32) - exact).abs().max() < 1e-2
    assert (roll("cuda", torch.bfloat16) - exact).abs().mean() < 0.1


def test_responses_are_the_cpus() -> None:
    found = []
    for place in PLACES:
        student = LanguageStudent.load("tokens/student").to(place, torch.float64)
        batch = student.generate(student.prompts(language.examples(4)), None, Sampling(temperature=0.0))
        found.append(batch)
        assert batch.logprobs is not None and batch.logprobs.device.type == place
    assert torch.equal(found[0].ids, found[1].ids.cpu())


def train(run: Path, *settings: str) -> dict[str, Tensor]:
    """Three steps of Astrolabe by its command; the student."""
    command = [sys.executable, "-m", "vidalign.cli", "train", "world/astrolabe", "--run", str(run), *SHORT, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(run / "student.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("plain"), *SGD)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_trains_the_student_of_the_plain_one(engine: str, plain: dict[str, Tensor], tmp_path: Path) -> None:
    start = VideoStudent.load("world/student").base.state_dict()
    found = train(tmp_path, *SGD, *ENGINES[engine])
    moved = max(float((plain[name] - value).abs().max()) for name, value in start.items())
    apart = max(float((found[name] - value).abs().max()) for name, value in plain.items())
    assert moved > 1e-4 and apart < 0.02 * moved


@pytest.mark.parametrize("engine", ["plain", "zero2", "zero3"])
def test_an_engine_trains_in_bf16_and_goes_on(engine: str, tmp_path: Path) -> None:
    settings = ["engine.precision=bf16", *ENGINES.get(engine, ())]
    train(tmp_path, *settings)
    train(tmp_path, *settings, "trainer.steps=5", "--resume")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["objective/loss/mean"] for line in lines if line["kind"] == "metrics"}
    assert len(losses) == 5 and all(map(math.isfinite, losses.values()))
