"""Optimisers by name: Muon with AdamW is the two of them side by side; state survives a restart bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vidalign.engine.checkpoint import read_tensors, write_tensors
from vidalign.engine.config import OptimizerConfig
from vidalign.engine.optimizers import MuonWithAdamW, make_optimizer, make_schedule, orthogonalized
from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe

NAMES = ("adamw", "sgd", "muon")


def config(name: str = "muon", **changes: object) -> OptimizerConfig:
    settings: dict[str, object] = dict(learning_rate=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    return OptimizerConfig(optimizer=name, **{**settings, **changes})  # type: ignore[arg-type]


def weights(seed: int = 0) -> dict[str, nn.Parameter]:
    """A network's parameters by the names that a student gives them."""
    shapes = {
        "transformer.patch_embedding.weight": (6, 3, 1, 2, 2),
        "transformer.blocks.0.attn1.to_q.weight": (6, 6),
        "transformer.blocks.0.attn1.to_q.bias": (6,),
        "transformer.blocks.0.scale_shift_table": (1, 6, 6),
        "transformer.blocks.1.ffn.weight": (12, 6),
        "transformer.proj_out.weight": (3, 6),
    }
    numbers = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=numbers)) for name, shape in shapes.items()}


MATRICES = ("transformer.blocks.0.attn1.to_q.weight", "transformer.blocks.1.ffn.weight")


def give_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    numbers = torch.Generator().manual_seed(100 + step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=numbers)


def train(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        give_gradients(parameters, step)
        optimizer.step()
        optimizer.zero_grad()


def assert_equal(found: dict[str, nn.Parameter], expected: dict[str, nn.Parameter]) -> None:
    for name, parameter in expected.items():
        assert torch.equal(found[name], parameter), name


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's Muon, kept from rounding its matrices to bf16."""
    monkeypatch.setattr(Tensor, "bfloat16", lambda matrix: matrix)
    settings, found, expected = config(), weights(), weights()
    matrices = [p for name, p in expected.items() if name in MATRICES]
    others = [p for name, p in expected.items() if name not in MATRICES]
    muon = torch.optim.Muon(matrices, 1e-1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(others, 1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    train(found, make_optimizer(settings, found), range(4))
    for step in range(4):
        give_gradients(expected, step)
        muon.step()
        adamw.step()
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-5, atol=1e-6)
    assert all(not torch.equal(found[name], start) for name, start in weights().items())


@pytest.mark.parametrize("shape", [(24, 9), (9, 24), (16, 16)])
def test_muon_orthogonalises_in_the_dtype_of_the_matrix(shape: tuple[int, int]) -> None:
    """In fp64 each singular value goes through the published polynomial; both bases stay."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(
        orthogonalized(matrix, (a, b, c), steps=5), left @ values.diag() @ right, rtol=0, atol=1e-10
    )


def test_adamw_and_sgd_are_torchs() -> None:
    found, expected = weights(), weights()
    train(found, make_optimizer(config("adamw"), found), range(3))
    train(expected, torch.optim.AdamW(expected.values(), 1e-2, betas=(0.9, 0.99), weight_decay=0.1), range(3))
    assert_equal(found, expected)
    found, expected = weights(), weights()
    train(found, make_optimizer(config("sgd"), found), range(3))
    train(expected, torch.optim.SGD(expected.values(), 1e-2, weight_decay=0.1), range(3))
    assert_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_restart_goes_on_bit_by_bit(name: str, tmp_path: Path) -> None:
    settings = config(name, schedule="cosine", warmup_steps=2)

    def build(parameters: dict[str, nn.Parameter]) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = make_optimizer(settings, parameters)
        return optimizer, make_schedule(settings, optimizer, 8)

    def run(
        parameters: dict[str, nn.Parameter],
        parts: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
        steps: range,
    ) -> None:
        for step in steps:
            train(parameters, parts[0], range(step, step + 1))
            parts[1].step()

    straight, first = weights(), weights()
    run(straight, build(straight), range(6))
    parts = build(first)
    run(first, parts, range(3))
    state: dict[str, object] = {"weights": {key: p.detach() for key, p in first.items()}}
    write_tensors(tmp_path / "state.pt", state | {"o": parts[0].state_dict(), "s": parts[1].state_dict()})
    state = read_tensors(tmp_path / "state.pt")
    second = weights(seed=1)
    with torch.no_grad():
        for key, parameter in second.items():
            parameter.copy_(state["weights"][key])  # type: ignore[index]
    parts = build(second)
    parts[0].load_state_dict(state["o"])  # type: ignore[arg-type]
    parts[1].load_state_dict(state["s"])  # type: ignore[arg-type]
    run(second, parts, range(3, 6))
    assert_equal(second, straight)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_the_schedule_scales_both_rates() -> None:
    settings, parameters = config(warmup_steps=2, schedule="cosine"), weights()
    optimizer = make_optimizer(settings, parameters)
    assert isinstance(optimizer, MuonWithAdamW)
    schedule = make_schedule(settings, optimizer, 6)
    found = []
    for step in range(7):
        found.append(rates(optimizer))
        assert found[-1] == [part.param_groups[0]["lr"] for part in optimizer.parts], "the parts see the schedule"
        train(parameters, optimizer, range(step, step + 1))
        schedule.step()
    factors = [0.5, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627, 0.0]
    for (muon, adamw), factor in zip(found, factors, strict=True):
        assert (muon, adamw) == (pytest.approx(1e-1 * factor), pytest.approx(1e-2 * factor))


def test_no_learning_rate_no_motion() -> None:
    for name in NAMES:
        parameters = weights()
        train(parameters, make_optimizer(config(name, learning_rate=0.0), parameters), range(2))
        assert_equal(parameters, weights())


def test_zero_grad_clears_both() -> None:
    parameters = weights()
    optimizer = make_optimizer(config(), parameters)
    give_gradients(parameters, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in parameters.values())


def test_muon_without_any_matrix_is_refused() -> None:
    parameters = {name: p for name, p in weights().items() if name not in MATRICES}
    with pytest.raises(UserError, match="muon found no weight matrix"):
        make_optimizer(config(), parameters)


def test_muon_on_deepspeed_is_refused() -> None:
    overrides = ["trainer.optimizer=muon", "engine.name=deepspeed"]
    with pytest.raises(RecipeError, match="muon does not run on DeepSpeed"):
        load_recipe("world/pretrain/student", overrides)


def test_muon_trains_adapters_which_are_matrices_all() -> None:
    parameters: dict[str, nn.Parameter] = {name: p for name, p in weights().items() if name in MATRICES}
    train(parameters, make_optimizer(config(), parameters), range(2))
    start: dict[str, Tensor] = dict(weights())
    assert all(not torch.equal(p, start[name]) for name, p in parameters.items())
