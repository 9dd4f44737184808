"""The plain engine against torch by hand, its numerics, and what it must not import."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import Net, net, numbers, setup, train

from vidalign.engine import distributed
from vidalign.engine.base import Dispatch, View, build_engine
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.plain import average_gradients
from vidalign.errors import CheckpointError, UserError


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def test_a_step_is_what_torch_does_by_hand() -> None:
    network, _, engine = setup(optimizer="adamw", learning_rate=0.01, weight_decay=0.1, clip=0.05)
    by_hand = net()
    optimizer = torch.optim.AdamW(by_hand.parameters(), 0.01, weight_decay=0.1)
    for step in range(3):
        norm = train(engine, numbers(step, 5, 3))
        by_hand.velocity(numbers(step, 5, 3)).square().mean().backward()
        expected = torch.stack([p.grad.square().sum() for p in by_hand.parameters()]).sum().sqrt()
        for p in by_hand.parameters():
            p.grad *= min(1.0, 0.05 / float(expected))
        optimizer.step()
        optimizer.zero_grad()
        assert norm == pytest.approx(float(expected), rel=1e-5)
    for name, weight in weights(by_hand).items():
        assert torch.allclose(weights(network)[name], weight, atol=1e-5), name


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_micro_batches_do_not_matter(pieces: int) -> None:
    whole, parts = setup(precision="fp64"), setup(precision="fp64")
    for step in range(2):
        batch = numbers(step, 6, 3).double()
        norms = train(whole[2], batch), train(parts[2], *batch.chunk(pieces))
        assert norms[0] == pytest.approx(norms[1], rel=1e-12)
    for name, weight in weights(whole[0]).items():
        assert torch.allclose(weights(parts[0])[name], weight, atol=1e-14), name


def test_no_clipping_unless_asked() -> None:
    network, _, engine = setup(learning_rate=1.0)
    before = weights(network)
    norm = train(engine, 100 * numbers(0, 4, 3))
    moved = math.sqrt(sum(float((before[n] - w).square().sum()) for n, w in weights(network).items()))
    assert norm > 10.0
    assert moved == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(bad: float) -> None:
    network, _, engine = setup(optimizer="adamw", warmup_steps=4)
    assert (engine.steps, engine.skipped, engine.skipped_in_row) == (0, 0, 0)
    train(engine, numbers(0, 4, 3))
    before = weights(network)
    assert not math.isfinite(train(engine, torch.full((4, 3), bad)))
    assert all(torch.equal(before[name], w) for name, w in weights(network).items())
    assert (engine.steps, engine.skipped, engine.skipped_in_row) == (2, 1, 1)
    assert math.isfinite(train(engine, numbers(1, 4, 3)))
    assert (engine.skipped, engine.skipped_in_row) == (1, 0)


def test_a_first_step_that_is_not_finite_makes_torch_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(setup()[2], torch.full((4, 3), math.nan))


def test_bf16_computes_low_and_keeps_fp32_masters() -> None:
    network, _, engine = setup(AdapterConfig(rank=2), "bf16", optimizer="adamw", learning_rate=1e-5)
    out = engine.view(own_phase=True).velocity(numbers(0, 4, 3))
    frozen = engine.view(own_phase=False).velocity(numbers(0, 4, 3))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, frozen)
    before = weights(network)
    train(engine, numbers(0, 4, 3))
    states = [v for s in engine.optimizer.state.values() for v in s.values() if v.ndim]
    assert states and {p.dtype for p in engine.trainable} == {s.dtype for s in states} == {torch.float32}
    up = [name for name in before if "lora_B.current" in name]
    assert all((weights(network)[n] != before[n]).all() for n in up), "a step below bf16's resolution is kept"


def test_ranks_average_their_gradients_and_begin_with_the_weights_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks in one process: the mean is made up, and whatever is sent is noted."""
    sent: list[tuple[torch.Tensor, int]] = []
    alone = train(setup()[2], numbers(0, 4, 3))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_mean", lambda flat: 3 * flat)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: sent.append((tensor, src)))
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    build_engine(EngineConfig(), OptimizerConfig(), network, 5)
    assert {src for _, src in sent} == {0}
    assert [t.data_ptr() for t, _ in sent] == [t.data_ptr() for t in (*network.parameters(), *network.buffers())]
    assert train(setup()[2], numbers(0, 4, 3)) == pytest.approx(3 * alone)
    mixed = [torch.nn.Parameter(torch.ones(2, 3, dtype=d)) for d in (torch.float32, torch.float64, torch.float32)]
    for n, parameter in enumerate(mixed[:2]):
        parameter.grad = torch.full_like(parameter, n + 1)
    average_gradients(mixed)
    assert [p.grad if p.grad is None else p.grad.unique().tolist() for p in mixed] == [[3.0], [6.0], None]


def test_fp64_is_fp64_throughout() -> None:
    network, _, engine = setup(AdapterConfig(rank=2), "fp64")
    assert {p.dtype for p in network.parameters()} == {torch.float64}


def test_schedule_closed_form() -> None:
    config = OptimizerConfig(warmup_steps=2, schedule="cosine")
    found = [config.factor(step, 6) for step in range(8)]
    half = 0.5 + 0.5 * math.sqrt(0.5)
    assert found == pytest.approx([0.5, 1.0, 1.0, half, 0.5, 1 - half, 0.0, 0.0])
    assert [OptimizerConfig(warmup_steps=0).factor(step, 6) for step in (0, 9)] == [1.0, 1.0]
    short = OptimizerConfig(warmup_steps=2, schedule="cosine")
    assert [short.factor(step, 3) for step in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.0])
    assert short.factor(2, 2) == 1.0, "warm-up alone"
    _, _, engine = setup(learning_rate=0.4, warmup_steps=2, schedule="cosine")
    rates = []
    for step in range(3):
        rates.append(engine.learning_rate)
        train(engine, numbers(step, 2, 3))
    assert rates == pytest.approx([0.2, 0.4, 0.4])


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2)])
def test_save_and_load(adapter: AdapterConfig | None, tmp_path: Path) -> None:
    first = setup(adapter, optimizer="adamw", warmup_steps=3)
    train(first[2], numbers(0, 4, 3))
    first[2].save(tmp_path)
    second = setup(adapter, optimizer="adamw", warmup_steps=3)
    second[2].load(tmp_path)
    for network, _, engine in (first, second):
        train(engine, numbers(1, 4, 3))
        assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(weights(second[0])[name], w) for name, w in weights(first[0]).items())
    assert second[2].steps == 2
    assert second[2].learning_rate == first[2].learning_rate == 0.1, "after warm-up, which the schedule remembers"


def test_load_into_another_network_names_the_weight(tmp_path: Path) -> None:
    setup(AdapterConfig(rank=2))[2].save(tmp_path)
    with pytest.raises(CheckpointError, match=r"lora_A.*found \(2, 12\), expected \(4, 12\)"):
        setup(AdapterConfig(rank=4))[2].load(tmp_path)


def test_views_call_through_the_engine() -> None:
    calls: list[str] = []

    class Recording(Dispatch):
        def forward(self, name: str, *args: object, **kwargs: object) -> object:
            calls.append(name)
            return super().forward(name, *args, **kwargs)

    network = Net()
    view = View(network, Recording(network, "fp32"))
    view.velocity(numbers(0, 2, 3))
    assert view.head is network.head and list(view.parameters()) == list(network.parameters())
    assert calls == ["velocity"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"clip": float("nan")}, "clip must be a finite number"),
        ({"betas": (0.9, 1.0)}, "betas must lie in 0..1, 1 excluded"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: EngineConfig(zero_stage=4), "engine.zero_stage"),
        (lambda: EngineConfig(name="deepspeed", precision="fp64"), "engine.precision"),
        (lambda: EngineConfig(name="deepspeed", zero_stage=2, offload="parameters"), "engine.offload"),
        (lambda: EngineConfig(offload="optimizer"), "engine.offload"),
        (lambda: EngineConfig(name="deepspeed", zero_stage=0, offload="optimizer"), "engine.offload"),
        (lambda: AdapterConfig(rank=0), "student.adapter.rank"),
        (lambda: AdapterConfig(alpha=0.0), "student.adapter.alpha"),
    ],
)
def test_bad_settings_are_refused(make: object, where: str) -> None:
    with pytest.raises(UserError) as error:
        make()  # type: ignore[operator]
    assert error.value.problems[0].where == where


def test_the_ends_of_the_ranges_are_settings() -> None:
    for stage in range(4):
        assert EngineConfig(zero_stage=stage).zero_stage == stage
    EngineConfig(name="deepspeed", zero_stage=1, offload="optimizer")
    EngineConfig(name="deepspeed", zero_stage=3, offload="parameters")
    OptimizerConfig(betas=(0.0, 0.999), learning_rate=0.0, clip=0.0)
    AdapterConfig(rank=1, alpha=0.5)


@pytest.mark.parametrize("divided", [False, True])
def test_the_norm_of_all_trained_weights(divided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process holds all parts of a divided parameter, which then count like whole ones."""
    network, _, engine = setup()
    monkeypatch.setattr("vidalign.engine.zero3.is_divided", lambda parameter: divided)
    monkeypatch.setattr("vidalign.engine.zero3.own_part", lambda parameter: parameter)
    expected = math.sqrt(sum(float(p.detach().square().sum()) for p in network.parameters()))
    assert engine.weight_norm() == pytest.approx(expected, rel=1e-6)


def test_one_plain_process_imports_no_deepspeed_and_opens_no_group() -> None:
    script = (
        "import sys, torch; from engine_helpers import *; from vidalign.engine import roles, distributed\n"
        "n, p, e = setup(AdapterConfig(rank=2)); train(e, numbers(0, 2, 3)); p.copy('current', 'old')\n"
        "distributed.setup(); distributed.barrier()\n"
        "assert distributed.all_gather(torch.ones(2)).shape == (2,)\n"
        "assert not torch.distributed.is_initialized()\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] == 'deepspeed'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_importing_vidalign_is_light() -> None:
    script = "import sys, vidalign; print([m for m in ('deepspeed', 'torch.distributed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
