"""Neighbor GRPO (2511.16955, 2603.17461) and the clipped surrogate against closed forms and finite differences, in
float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vidalign.losses.neighbor_grpo import neighbor_grpo_loss, quasi_normalise, surrogate_log_policy
from vidalign.losses.policy_gradient import clip_fraction, clipped_surrogate, renoising_log_prob

N, G, D = 3, 5, 24
EXACT = dict(rtol=1e-11, atol=1e-14)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states() -> tuple[Tensor, Tensor, Tensor]:
    """Candidates ``[N, G, 2, 3, 4]``, advantages of sum zero ``[N, G]``, another prediction ``[N, 2, 3, 4]``."""
    advantage = numbers(N, G, seed=1)
    return numbers(N, G, 2, 3, 4), advantage - advantage.mean(1, keepdim=True), numbers(N, 2, 3, 4, seed=2)


def gradient(current: Tensor, *rest: Tensor, **settings: float | None) -> Tensor:
    leaf = current.clone().requires_grad_()
    (found,) = torch.autograd.grad(neighbor_grpo_loss(leaf, *rest, **settings).loss.sum(), leaf)  # type: ignore[arg-type]
    return found


def test_policy_is_a_softmax_of_distances() -> None:
    candidates, _, x0 = states()
    found = surrogate_log_policy(x0, candidates, 0.7).exp()
    for n in range(N):
        weights = [math.exp(-float(((c - x0[n]) ** 2).sum()) / D / 0.7) for c in candidates[n]]
        assert found[n].tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-12)


@pytest.mark.parametrize("clip", [None, 1e-4, 0.2])
@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_gradient_where_the_policies_agree(temperature: float, clip: float | None) -> None:
    """dJ/dx0 = 2 / (G tau D) sum_i A_i x0^(i), and it does not depend on the anchor."""
    candidates, advantage, _ = states()
    expected = 2 / (G * temperature * D) * (advantage[:, :, None, None, None] * candidates).sum(1)
    for anchor in range(G):
        x0 = candidates[:, anchor]
        found = gradient(x0, x0, candidates, advantage, clip=clip, temperature=temperature)
        torch.testing.assert_close(-found, expected, **EXACT)


def test_ratio_is_one_where_the_policies_agree() -> None:
    candidates, advantage, x0 = states()
    out = neighbor_grpo_loss(x0, x0, candidates, advantage, clip=1e-4)
    assert (out.ratio == 1).all() and out.clipped == 0
    torch.testing.assert_close(out.loss, torch.zeros(N, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradient_is_the_finite_difference(clip: float | None) -> None:
    candidates, advantage, old = states()
    current = old + 0.1 * numbers(N, 2, 3, 4, seed=4)
    found, h = gradient(current, old, candidates, advantage, clip=clip), 1e-6
    for index in ((0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 1, 2)):
        step = torch.zeros_like(current)
        step[index] = h
        up, down = (
            neighbor_grpo_loss(current + s * step, old, candidates, advantage, clip=clip).loss.sum() for s in (1, -1)
        )
        assert float(found[index]) == pytest.approx(float(up - down) / (2 * h), rel=1e-5, abs=1e-10)


def test_loss_is_the_clipped_objective_written_out() -> None:
    candidates, advantage, old = states()
    current, clip = old + 0.3 * numbers(N, 2, 3, 4, seed=4), 0.02
    out = neighbor_grpo_loss(current, old, candidates, advantage, clip=clip)
    stopped = 0
    for n in range(N):
        policies = []
        for x0 in (current[n], old[n]):
            weights = [math.exp(-float(((c - x0) ** 2).mean())) for c in candidates[n]]
            policies.append([w / sum(weights) for w in weights])
        total = 0.0
        for now, before, a in zip(*policies, advantage[n].tolist(), strict=True):
            rho = now / before
            inside = min(max(rho, 1 - clip), 1 + clip)
            total += min(rho * a, inside * a)
            stopped += rho * a > inside * a
        assert float(out.loss[n]) == pytest.approx(-total / G, rel=1e-10)
    assert 0 < stopped < N * G and float(out.clipped) == pytest.approx(stopped / (N * G))


def test_a_step_along_the_gradient_moves_towards_the_better_candidates() -> None:
    candidates, advantage, _ = states()
    x0 = candidates[:, 0]
    moved = x0 - 0.5 * gradient(x0, x0, candidates, advantage, clip=1e-4)
    change = surrogate_log_policy(moved, candidates, 1.0) - surrogate_log_policy(x0, candidates, 1.0)
    assert ((change * advantage).sum(1) > 0).all()


def test_a_clipped_ratio_has_no_gradient() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.0, 1.5, 1.5], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    clipped_surrogate(ratio, advantage, 0.1).sum().backward()
    assert ratio.grad is not None and ratio.grad.tolist() == [1.0, 0.0, 1.0, 0.0, -1.0]
    assert float(clip_fraction(ratio, advantage, 0.1)) == pytest.approx(0.4)
    assert clip_fraction(ratio, advantage, None) == 0 == clip_fraction(ratio, 0 * advantage, 0.1)
    at_bounds = clip_fraction(torch.tensor([1.5, 0.5]), torch.tensor([1.0, -1.0]), 0.5)
    assert at_bounds == 0 and clip_fraction(torch.tensor([2.0]), torch.tensor([1.0]), 0.5) == 1
    assert clipped_surrogate(ratio, advantage, None).tolist() == [0.5, -0.5, 1.0, 1.5, -1.5]


def test_half_precision_is_computed_in_fp32() -> None:
    candidates, advantage, x0 = (x.bfloat16() for x in states())
    out = neighbor_grpo_loss(x0, x0, candidates, advantage.float(), clip=1e-4)
    assert out.ratio.dtype == torch.float32 and (out.ratio == 1).all()


def test_quasi_norm() -> None:
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0], [3.0, 0.0, 0.0, -4.0], [0.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(quasi_normalise(advantage, 2.0)[:2], advantage[:2] * torch.tensor([[1.0], [0.4]]))
    found = quasi_normalise(advantage, 0.8)
    assert found[0].tolist() == pytest.approx([2 / 4**1.25 * s for s in (1, -1, 1, -1)])
    assert (found[2] == 0).all()
    for factor in (7, 0.01):
        torch.testing.assert_close(quasi_normalise(factor * advantage, 0.8), found)
    nine = torch.tensor([[2.0] * 8 + [0.0]], dtype=torch.float64)
    torch.testing.assert_close(quasi_normalise(nine, 2.0)[:, :8], torch.full((1, 8), 3 / 8**0.5).double())


def test_log_probability_of_renoising_is_the_gaussians() -> None:
    """Up to a constant that is the same for both policies: differences are those of torch's normal."""
    x_next, first, second = (numbers(2, 3, 4, 5, seed=s) for s in range(3))
    sigma = torch.tensor([[0.8, 0.8, 0.6], [0.4, 0.4, 0.4]], dtype=torch.float64)
    level = sigma[..., None, None]
    expected = [
        torch.distributions.Normal((1 - level) * x0, level).log_prob(x_next).mean((2, 3)) for x0 in (first, second)
    ]
    found = [renoising_log_prob(x_next, x0, sigma) for x0 in (first, second)]
    torch.testing.assert_close(found[0] - found[1], expected[0] - expected[1], **EXACT)
