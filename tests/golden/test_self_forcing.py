"""Reference numbers of the original Self-Forcing network and sampler: see
tests/fixtures/self_forcing_tiny.safetensors.

Tolerances (max abs error): 2e-4 with stock diffusers numerics, 1e-5 with `numerics: wan`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from original_wan import OriginalWan
from safetensors import safe_open
from safetensors.torch import save_file

from vidalign.students.exchange import ImportOptions
from vidalign.students.video import VideoStudent
from vidalign.students.video.importers.convert import import_checkpoint
from vidalign.students.video.kind import Video
from vidalign.students.video.rollout import Noise, RolloutPlan
from vidalign.students.video.spec import scheduler_sigmas

FIXTURE = Path(__file__).parents[1] / "fixtures" / "self_forcing_tiny.safetensors"
TOLERANCE = {"diffusers": 2e-4, "wan": 1e-5}


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    with safe_open(FIXTURE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


@pytest.fixture(scope="module", params=["diffusers", "wan"])
def student(request: pytest.FixtureRequest, reference: dict, tmp_path_factory: pytest.TempPathFactory) -> VideoStudent:
    return imported(reference, tmp_path_factory.mktemp("public"), request.param)


def imported(reference: dict, folder: Path, numerics: str, dtype: torch.dtype = torch.float32) -> VideoStudent:
    """The original's weights through `vidalign import`."""
    prefix, file = "sf_state_dict/", folder / "original.safetensors"
    save_file({k[len(prefix) :]: v for k, v in reference.items() if k.startswith(prefix)}, file)
    options = ImportOptions(heads=config()["num_attention_heads"], height=48, width=64)
    made = import_checkpoint("self_forcing", str(file), folder / "student", options).folder
    return VideoStudent.load(made, dtype=dtype, spec=replace(Video.read_spec(made), numerics=numerics))


def config() -> dict:
    """The configuration of the network of the fixture."""
    with safe_open(FIXTURE, "pt") as file:
        return json.loads(file.metadata()["config"])


def error(student: VideoStudent, found: torch.Tensor, expected: torch.Tensor) -> float:
    """Max abs error in units of the tolerance."""
    return (found - expected).abs().max().item() / TOLERANCE[student.spec.numerics]


@torch.no_grad()
def test_bidirectional(student: VideoStudent, reference: dict) -> None:
    sigma = reference["a_bidirectional/timestep"] / 1000
    found = student.bidirectional(reference["inputs/latents"], sigma, reference["inputs/context"])
    assert error(student, found, reference["a_bidirectional/velocity"]) < 1


@torch.no_grad()
def test_block_causal(student: VideoStudent, reference: dict) -> None:
    sigma = reference["a_block_causal3/timestep"] / 1000
    found = student(reference["inputs/latents"], sigma, reference["inputs/context"], attention="block_causal")
    assert error(student, found, reference["a_block_causal3/velocity"]) < 1


@torch.no_grad()
def test_teacher_forcing(student: VideoStudent, reference: dict) -> None:
    sigma = reference["a_teacher_forcing3/timestep"] / 1000
    found = student.velocity(
        reference["inputs/latents"], sigma, reference["inputs/context"], clean=reference["inputs/clean"]
    )
    assert error(student, found, reference["a_teacher_forcing3/velocity"]) < 1


@torch.no_grad()
def test_cached_chunks(student: VideoStudent, reference: dict) -> None:
    latents, clean, text = (reference[f"inputs/{name}"] for name in ("latents", "clean", "context"))
    context = student.begin(text)
    for chunk in range(3):
        frames = slice(3 * chunk, 3 * chunk + 3)
        for step, timestep in enumerate((1000.0, 937.5)):
            found = student.velocity(latents[:, frames], torch.tensor([timestep / 1000]), text, context)
            assert error(student, found, reference[f"b_chunks3_full/velocity/{3 * chunk + step}"]) < 1
        found = student.velocity(clean[:, frames], torch.zeros(1), text, context)
        assert error(student, found, reference[f"b_chunks3_full/velocity/{3 * chunk + 2}"]) < 1
        context = student.extend(context, clean[:, frames], text)


def test_whole_sampler(student: VideoStudent, reference: dict) -> None:
    renoise = torch.stack([reference[f"c_sf_rollout/renoise/{i}"] for i in range(9)])  # chunk-major, 3 a chunk
    renoise = renoise.unflatten(0, (3, 3)).transpose(0, 1).flatten(1, 2).unsqueeze(0)
    timesteps = reference["c_sf_rollout/timesteps"]
    assert torch.allclose(torch.tensor(student.spec.sampler.sigmas) * 1000, timesteps, atol=1e-4)
    out = student.rollout(
        reference["inputs/context"], RolloutPlan(0, 3), Noise(reference["c_sf_rollout/noise"], renoise)
    )
    assert error(student, out.latents, reference["c_sf_rollout/latents"]) < 1


def test_scheduler_table(reference: dict) -> None:
    assert (scheduler_sigmas(5.0) - reference["scheduler/sigmas5"]).abs().max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("numerics", ["wan", "diffusers"])
def test_a_whole_rollout_in_bf16_rounds_as_the_original_does(numerics: str, reference: dict, tmp_path: Path) -> None:
    """Bit for bit with `numerics: wan`; stock numerics are as close to fp32, and other numbers."""
    student = imported(reference, tmp_path, numerics, torch.bfloat16)
    prefix = "sf_state_dict/model."
    twin = OriginalWan({k[len(prefix) :]: v for k, v in reference.items() if k.startswith(prefix)}, config())
    renoise = torch.stack([reference[f"c_sf_rollout/renoise/{i}"] for i in range(9)])
    renoise = renoise.unflatten(0, (3, 3)).transpose(0, 1).flatten(1, 2).unsqueeze(0).bfloat16()
    noise, text = reference["c_sf_rollout/noise"].bfloat16(), reference["inputs/context"].bfloat16()
    expected = twin.sample(noise, renoise, text, student.spec.sampler.sigmas, 3)
    out = student.rollout(text, RolloutPlan(0, 3), Noise(noise, renoise).to("cpu", student.latent_dtype)).latents
    assert torch.equal(out.to(expected), expected) == (numerics == "wan")
    assert (out.float() - reference["c_sf_rollout/latents"]).abs().max() < 0.5, "rounding, not another network"
