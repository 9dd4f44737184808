"""Where gradients go, checkpointing, adapters, precision: the student as a module to train."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from student_reference import inputs, student

from vidalign.errors import CheckpointError, UserError
from vidalign.students.video import CachePolicy, VideoStudent, VideoStudentSpec

POLICY = CachePolicy(chunk_frames=3, window=9, sink=3)
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def test_no_gradient_reaches_earlier_chunks() -> None:
    noise, _, text = inputs(6)
    network = student()
    first = noise[:, :3].clone().requires_grad_()
    second = noise[:, 3:].clone().requires_grad_()
    context = network.extend(network.begin(text), network.predict_x0(first, torch.ones(1), text), text)
    network.velocity(second, torch.ones(1), text, context).square().sum().backward()
    assert first.grad is None
    assert second.grad is not None and second.grad.norm() > 1
    assert all(not k.requires_grad for piece in context.pieces for k in (*piece.keys, *piece.values))


def test_a_context_is_frozen_whatever_made_it() -> None:
    noise, clean, text = inputs(6)
    network = student()
    made = network.extend(network.begin(text), clean[:, :3], text).map(lambda x: x.clone().requires_grad_())
    network.velocity(noise[:, 3:], torch.ones(1), text, made).square().sum().backward()
    assert all(x.grad is None for x in (*made.pieces[0].keys, *made.pieces[0].values))


def test_teacher_forcing_keeps_noisy_chunks_apart() -> None:
    noise, clean, text = inputs(9)
    noise.requires_grad_()
    out = student().velocity(noise, torch.full((1,), 0.7), text, clean=clean)
    out[:, 3:6].square().sum().backward()
    assert noise.grad is not None
    assert noise.grad[:, 3:6].norm() > 1
    assert noise.grad[:, :3].abs().max() == 0 and noise.grad[:, 6:].abs().max() == 0


def _gradients(network: VideoStudent, checkpointing: bool, frames: slice) -> dict[str, torch.Tensor]:
    noise, clean, text = inputs(18)
    context = network.extend(network.begin(text), clean[:, : frames.start], text)
    network.gradient_checkpointing(checkpointing)
    network.zero_grad()
    some = noise[:, frames]
    network.velocity(some, torch.full((1,), 0.7), text, context, clean=clean[:, frames]).square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frames", [slice(12, 15), slice(9, 18)], ids=["one chunk", "teacher forcing"])
@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_checkpointing_is_bit_equal(frames: slice, rope: str) -> None:
    network = student(CachePolicy(chunk_frames=3, window=9, sink=3, rope=rope))
    on, off = _gradients(network, True, frames), _gradients(network, False, frames)
    assert len(off) > 60 and on.keys() == off.keys()
    assert all(torch.equal(on[name], off[name]) for name in off)


def test_adapters_train_and_switch_off() -> None:
    from peft import LoraConfig, get_peft_model

    noise, clean, text = inputs(6)
    sigma = torch.full((1,), 0.7)
    network = student(POLICY)
    before = network.velocity(noise, sigma, text, clean=clean)
    network.transformer = get_peft_model(network.transformer, LoraConfig(r=4, target_modules=TARGETS))  # type: ignore[assignment]
    assert torch.equal(network.velocity(noise, sigma, text, clean=clean), before)
    network.velocity(noise, sigma, text, clean=clean).square().mean().backward()
    trained = [n for n, p in network.named_parameters() if p.grad is not None]
    assert len(trained) == 3 * 10 * 2 and all("lora" in n for n in trained)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.add_(0.05 * torch.ones_like(p) if "lora_B" in name else 0)
    assert not torch.allclose(network.velocity(noise, sigma, text, clean=clean), before, atol=1e-2)
    with network.transformer.disable_adapter():
        assert torch.equal(network.velocity(noise, sigma, text, clean=clean), before)


def test_a_saved_adapter_is_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    noise, _, text = inputs(3)
    network = student(POLICY)
    network.transformer = get_peft_model(  # type: ignore[assignment]
        network.transformer, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    )
    network.save(tmp_path / "merged.safetensors", {"command": "test"})
    loaded = VideoStudent.load(tmp_path / "merged.safetensors")
    sigma = torch.ones(1)
    difference = loaded.velocity(noise, sigma, text) - network.velocity(noise, sigma, text)
    assert difference.abs().max() < 1e-4


def test_autocast_stays_close_and_keeps_the_output_dtype() -> None:
    noise, clean, text = inputs(6)
    network, sigma = student(POLICY), torch.full((1,), 0.7)
    exact = network.velocity(noise, sigma, text, clean=clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network.velocity(noise, sigma, text, clean=clean)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.02 * exact.abs().mean() + 0.02


def test_x0_and_velocity_are_two_views_of_one_network() -> None:
    noise, _, text = inputs(3)
    sigma = torch.full((1,), 0.6)
    for prediction in ("velocity", "x0"):
        network = student(POLICY, prediction=prediction)
        x0, velocity = network.predict_x0(noise, sigma, text), network.velocity(noise, sigma, text)
        assert torch.allclose(x0, noise - 0.6 * velocity, atol=1e-5)
    # the same raw output, read as velocity or as x0
    assert torch.allclose(
        student(POLICY, prediction="x0").predict_x0(noise, sigma, text),
        student(POLICY).velocity(noise, sigma, text),
    )


class Engine(torch.nn.Module):
    """Wraps a module under the name that DDP and DeepSpeed use."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_engines_may_wrap_the_student_or_its_network() -> None:
    noise, clean, text = inputs(6)
    network, sigma = student(POLICY), torch.full((1,), 0.7)
    expected = network.predict_x0(noise, sigma, text, clean=clean)
    outer = Engine(network)
    assert torch.equal(outer(noise, sigma, text, clean=clean, output="x0"), expected)
    inner = Engine(network.transformer)
    network.transformer = inner
    assert torch.equal(network.predict_x0(noise, sigma, text, clean=clean), expected) and inner.calls == 1


def test_copies_are_independent_networks() -> None:
    """Roles and snapshots are deep copies of the student or of its network alone."""
    noise, clean, text = inputs(6)
    network, sigma = student(POLICY), torch.full((1,), 0.7)
    expected = network.velocity(noise, sigma, text, clean=clean)
    whole, part = copy.deepcopy(network), student(POLICY)
    part.transformer = copy.deepcopy(network.transformer)
    with torch.no_grad():
        network.base.proj_out.weight.zero_()
    assert torch.equal(whole.velocity(noise, sigma, text, clean=clean), expected)
    assert torch.equal(part.velocity(noise, sigma, text, clean=clean), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_whole_networks_in_other_precisions(dtype: torch.dtype) -> None:
    noise, clean, text = inputs(6)
    exact = student(POLICY).velocity(noise, torch.full((1,), 0.7), text, clean=clean)
    network = student(POLICY).to(dtype)
    found = network.velocity(noise, torch.full((1,), 0.7), text, clean=clean)
    assert found.dtype == torch.float32
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert (found - exact).abs().mean() < tolerance


def test_save_and_load(tmp_path: Path) -> None:
    from safetensors import safe_open

    network, path = student(POLICY), tmp_path / "student.safetensors"
    network.save(path, {"commit": "abc", "seed": "0"})
    loaded = VideoStudent.load(path)
    assert loaded.spec == network.spec
    assert all(torch.equal(x, y) for x, y in zip(network.parameters(), loaded.parameters(), strict=True))
    with safe_open(path, "pt") as file:
        assert file.metadata()["commit"] == "abc"


def _damaged(kind: str, path: Path) -> None:
    from safetensors.torch import load_file, save_file

    network = student(POLICY)
    network.save(path)
    tensors = load_file(path)
    metadata = {"spec": __import__("json").dumps(network.spec.to_dict())}
    if kind == "missing key":
        del tensors["proj_out.bias"]
    elif kind == "wrong shape":
        tensors["proj_out.bias"] = torch.zeros(5)
    elif kind == "no spec":
        metadata = {}
    save_file(tensors, path, metadata=metadata)
    if kind == "half-written":
        path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing key", "proj_out.bias"),
        ("wrong shape", r"proj_out.bias.*found \[5\], expected \[64\]"),
        ("no spec", "spec"),
        ("half-written", "half-written"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, kind: str, message: str) -> None:
    _damaged(kind, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        VideoStudent.load(tmp_path / "x.safetensors")


def test_missing_weights_and_misspelt_specs_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights"):
        VideoStudent.load(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="chunk_frames"):
        VideoStudentSpec.from_dict({"cache": {"chunk_frame": 3}})
