"""What the CPU computes, the accelerator computes too: rollouts, every objective's loss and gradient, every engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import language_objective_helpers as language
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vidalign import registry
from vidalign.objectives.base import Phase
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import Sampling
from vidalign.students.samples import SampleRequest
from vidalign.students.video import VideoStudent
from vidalign.students.video.rollout import RolloutPlan
from vidalign.testing import check_objective, check_reward, check_student
from vidalign.testing.trial import in_pieces
from vidalign.text.features import PromptFeatures
from vidalign.text.pretrained import build_features, text_plugin
from vidalign.tracking.clips import ClipWriter
from vidalign.workflows.sample import sample_student
from vidalign.worlds.video import captions
from vidalign.worlds.video.text import world_tokenizer

OBJECTIVES = [name for name, source in registry.names("objectives").items() if source == "vidalign"]
PLACES = ("cpu", "cuda")
DISCRIMINATOR = ("discriminator={name: spatiotemporal, width: 16, layers: 1}", "teacher={name: world}")
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_the_cpus(name: str) -> None:
    check_objective(name, promises=["device"])


def test_the_example_plugin_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    from vidalign_best_of_n import BestOfN

    check_objective(BestOfN, promises=["device"])


@pytest.mark.parametrize("name", ["discriminator", "visual_quality"])
def test_a_reward_is_the_cpus(name: str) -> None:
    check_reward(name, DISCRIMINATOR if name == "discriminator" else ())


@pytest.mark.parametrize("kind", ["language", "video"])
def test_a_student_is_the_cpus(kind: str) -> None:
    check_student(kind)


def roll(place: str, dtype: torch.dtype) -> Tensor:
    student = VideoStudent.load("world/student", place, dtype)
    plan = RolloutPlan(prefix=1, branch=1, suffix=1, group_size=2)
    noise = student.draw_noise(plan, [torch.Generator().manual_seed(i) for i in range(2)])
    text = build_features(student.spec.text)(list(captions.prompts("basic/train")[:2]))
    return student.rollout(text.to(place, dtype), plan, noise).latents.double().cpu()


def test_a_rollout_is_the_cpus() -> None:
    exact = roll("cpu", torch.float64)
    torch.testing.assert_close(roll("cuda", torch.float64), exact, rtol=0, atol=1e-4)  # some tables are fp32
    assert (roll("cuda", torch.float32) - exact).abs().max() < 1e-2
    assert (roll("cuda", torch.bfloat16) - exact).abs().mean() < 0.1


def test_a_sample_is_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its command, in fp32; text encoder, network and codec are on the accelerator."""
    found: dict[str, list[Tensor]] = {}
    for place in PLACES:
        parts = found.setdefault(place, [])
        with monkeypatch.context() as patch:
            patch.setattr("vidalign.engine.distributed.device", lambda place=place: torch.device(place, 0))
            patch.setattr(ClipWriter, "add", lambda self, clip, parts=parts: parts.append(clip))
            request = SampleRequest(("a large red circle falls",), tmp_path / "x.gif", frames=12, stats=True)
            (times,) = sample_student("world/student", request, precision="fp32").times
        assert [part.device.type for part in parts] == [place] * 4 and times.first_frames > 0
    torch.testing.assert_close(torch.cat(found["cuda"]).cpu(), torch.cat(found["cpu"]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_of_a_published_encoder_are_the_cpus(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on the accelerator and gives its memory back."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    UMT5EncoderModel(UMT5Config(**sizes)).save_pretrained(tmp_path)
    world_tokenizer().save_pretrained(tmp_path)
    plugin = text_plugin({"name": "transformers", "path": str(tmp_path), "length": 512, "dtype": dtype})
    prompts, before = list(captions.prompts("basic/train")[:4]), torch.cuda.memory_allocated()
    found = PromptFeatures(plugin, tmp_path / "cuda")(prompts)
    assert torch.cuda.memory_allocated() == before and torch.cuda.max_memory_allocated() > before
    monkeypatch.setattr("vidalign.engine.distributed.device", lambda: torch.device("cpu"))
    expected = PromptFeatures(plugin, tmp_path / "cpu")(prompts)
    assert found.dtype == getattr(torch, dtype) and found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if dtype == "float32" else 0.1)


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


@pytest.mark.parametrize("name", ["opd", "dopd"])
def test_a_teacher_in_host_memory_is_one_on_the_accelerator(name: str, tmp_path: Path) -> None:
    """Bit for bit, in fp32 and bf16; at rest its weights take nothing on the device. On the CPU it is near."""
    for precision, near in (("fp32", 1e-4), ("bf16", 0.05)):
        losses = {}
        for place in ("offload=false", "offload=true", "device=cpu"):
            words = (f"engine.precision={precision}", f"teacher.{place}")
            objective, ctx = language.make(tmp_path, name, *words)
            data = language.collect(objective, ctx)
            losses[place] = in_pieces(objective, ctx, data, Phase(), 4).loss
            teacher = ctx.roles._frozen["teacher"].network
            assert {p.device.type for p in teacher.parameters()} == {"cuda" if place == "offload=false" else "cpu"}
        assert losses["offload=true"] == losses["offload=false"]
        assert losses["device=cpu"] == pytest.approx(losses["offload=false"], rel=near)
