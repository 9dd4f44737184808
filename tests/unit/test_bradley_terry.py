"""Bradley-Terry loss, its gradient, what is left of it, and the advantage read off the scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vidalign.losses.bradley_terry import bradley_terry_loss, gan_loss, margin_advantage, pair_accuracy


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_loss_is_the_closed_form() -> None:
    margin = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64)
    expected = [-math.log(1 / (1 + math.exp(-m))) for m in margin.tolist()]
    assert bradley_terry_loss(margin).tolist() == pytest.approx(expected, rel=1e-14)
    assert bradley_terry_loss(torch.tensor(0.0)).item() == pytest.approx(math.log(2))


def test_extreme_margins_do_not_overflow() -> None:
    loss = bradley_terry_loss(torch.tensor([-1e4, 1e4]))
    assert loss.tolist() == [1e4, 0.0]


def test_gradient_is_the_saturation() -> None:
    """``dL/dm = -sigmoid(-m)``: by closed form and by finite differences."""
    margin = numbers(7, seed=1).requires_grad_()
    (found,) = torch.autograd.grad(bradley_terry_loss(margin).sum(), margin)
    expected = torch.tensor([-1 / (1 + math.exp(m)) for m in margin.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    step = 1e-6
    with torch.no_grad():
        slope = (bradley_terry_loss(margin + step) - bradley_terry_loss(margin - step)) / (2 * step)
    torch.testing.assert_close(found, slope, rtol=1e-8, atol=1e-9)


def test_gan_loss_is_binary_cross_entropy() -> None:
    teacher, student = numbers(6), numbers(6, seed=1)
    expected = [
        -math.log(1 / (1 + math.exp(-t))) - math.log(1 - 1 / (1 + math.exp(-s)))
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    ]
    assert gan_loss(teacher, student).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_constant_of_the_prompt_has_no_gradient() -> None:
    """Why the head has no bias."""
    teacher, student = numbers(4, 3), numbers(4, 1, seed=1)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = bradley_terry_loss((teacher + bias) - (student + bias)).sum()
    assert torch.autograd.grad(loss, bias)[0].abs() < 1e-14


def test_optimum_is_the_log_ratio_up_to_a_constant() -> None:
    """Two known distributions over three clips; the expected loss is minimised over a table of scores."""
    teacher = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    student = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    table = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([table], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimiser.zero_grad()
        margin = table.unsqueeze(1) - table
        loss = (teacher.unsqueeze(1) * student * bradley_terry_loss(margin)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = (table - table.mean()).detach()
    ratio = (teacher / student).log()
    torch.testing.assert_close(found, ratio - ratio.mean(), rtol=1e-5, atol=1e-5)


def test_pair_accuracy_counts_ties_half() -> None:
    assert pair_accuracy(torch.tensor([[2.0, -1.0], [0.0, 1e-9]])).tolist() == [[1.0, 0.0], [0.5, 1.0]]


def test_advantage_is_the_formula() -> None:
    score = torch.tensor([1.0, 3.0, 10.0, 14.0], dtype=torch.float64)
    found = margin_advantage(score, torch.tensor([0, 0, 1, 1]), floor=0.1)
    std = ((1 + 1 + 4 + 4) / 4) ** 0.5
    assert found.tolist() == pytest.approx([-1 / std, 1 / std, -2 / std, 2 / std], rel=1e-14)


def test_the_level_of_a_prompt_does_not_matter() -> None:
    """At the optimum D holds an arbitrary c(y): neither the advantage nor its scale may see it."""
    score, group = numbers(12), torch.arange(3).repeat_interleave(4)
    level = torch.tensor([0.0, 100.0, -7.0], dtype=torch.float64)[group]
    plain = margin_advantage(score, group, floor=0.1)
    torch.testing.assert_close(margin_advantage(score + level, group, floor=0.1), plain, rtol=0, atol=1e-12)
    assert plain.square().mean().item() == pytest.approx(1.0)


def test_noise_is_not_blown_up() -> None:
    score, group = 1e-3 * numbers(8), torch.arange(2).repeat_interleave(4)
    found = margin_advantage(score, group, floor=0.1)
    centred = score - score.view(2, 4).mean(1).repeat_interleave(4)
    torch.testing.assert_close(found, centred / 0.1)
    assert found.abs().max() < 0.05


def test_group_std_weighs_prompts_alike_and_keeps_the_floor() -> None:
    score = torch.tensor([1.0, 3.0, 10.0, 50.0, 0.0, 0.02], dtype=torch.float64)
    found = margin_advantage(score, torch.tensor([0, 0, 1, 1, 2, 2]), floor=0.1, std_of="group")
    expected = torch.tensor([-1.0, 1.0, -1.0, 1.0, -0.1, 0.1], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_failed_score_is_left_out() -> None:
    score = torch.tensor([1.0, torch.nan, 3.0, 5.0, 5.0, 5.0])
    found = margin_advantage(score, torch.tensor([0, 0, 0, 1, 1, 1]), floor=1e-3)
    std = (2 / 5) ** 0.5
    assert found.tolist() == pytest.approx([-1 / std, 0.0, 1 / std, 0.0, 0.0, 0.0], abs=1e-6)
