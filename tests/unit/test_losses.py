"""Losses and advantages against their closed forms, in float64: DiffusionNFT (2509.16117), Astrolabe (2603.17051),
AFD (2605.26105), flow matching (2210.02747)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vidalign.losses.advantages import combine, group_advantage, group_statistics, reward_weight, whiten
from vidalign.losses.flow_matching import add_noise, flow_matching_loss, warp_sigma
from vidalign.losses.forward_process import forward_process_loss, reference_penalty

N, D = 5, 12
EXACT = dict(rtol=1e-12, atol=1e-13)
WEIGHTS = torch.tensor([0.0, 0.25, 0.5, 0.8, 1.0], dtype=torch.float64)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def triple() -> tuple[Tensor, Tensor, Tensor]:
    """Current and old prediction and the rollout, ``[N, 3, 4]``."""
    current, old, target = (numbers(N, 3, 4, seed=seed) for seed in range(3))
    return current, old, target


def column(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, 1)


def gradient(current: Tensor, *rest: Tensor, **settings: float) -> Tensor:
    """Gradient of the summed loss with respect to the current prediction, times the elements of a sample."""
    leaf = current.clone().requires_grad_()
    (found,) = torch.autograd.grad(forward_process_loss(leaf, *rest, **settings).sum(), leaf)
    return found * D


# --- the forward-process loss ---


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_loss_is_its_expansion(beta: float) -> None:
    current, old, target = triple()
    found = forward_process_loss(current, old, target, WEIGHTS, beta=beta)
    for n, r in enumerate(WEIGHTS.tolist()):
        total = 0.0
        for cur, was, x0 in zip(*(x[n].flatten().tolist() for x in (current, old, target)), strict=True):
            e, d = was - x0, cur - was
            total += e * e + 2 * beta * (2 * r - 1) * e * d + beta**2 * d * d
        assert math.isclose(found[n].item(), total / D, rel_tol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_loss_is_least_at_the_closed_form(beta: float) -> None:
    _, old, target = triple()
    best = old + (1 - 2 * column(WEIGHTS)) * (old - target) / beta
    least = forward_process_loss(best, old, target, WEIGHTS, beta=beta)
    torch.testing.assert_close(gradient(best, old, target, WEIGHTS, beta=beta), torch.zeros_like(best), **EXACT)
    for seed in range(4):
        moved = best + 1e-2 * numbers(*best.shape, seed=10 + seed)
        assert (forward_process_loss(moved, old, target, WEIGHTS, beta=beta) > least).all()


def test_gradient_where_the_policies_agree() -> None:
    """2 beta (2r - 1) e; AFD writes it with velocities: 2 beta (2w - 1)(v - v*)."""
    _, old, target = triple()
    for beta in (0.1, 1.0):
        expected = 2 * beta * (2 * column(WEIGHTS) - 1) * (old - target)
        torch.testing.assert_close(gradient(old, old, target, WEIGHTS, beta=beta), expected, **EXACT)
        assert (expected[2] == 0).all() and (gradient(old, old, target, WEIGHTS, beta=beta)[2].abs() < 1e-13).all()


def test_minimiser_of_afd() -> None:
    """``v_old + (2w - 1) / beta (v* - v_old)``, found by exact line search instead of by formula."""
    _, old, target = triple()
    beta = 0.3
    slope = gradient(old, old, target, WEIGHTS, beta=beta)
    step = slope / (2 * beta**2)  # the loss is quadratic with this curvature in every element
    found = old - step
    expected = old + (2 * column(WEIGHTS) - 1) / beta * (target - old)
    torch.testing.assert_close(found, expected, **EXACT)


def test_adaptive_gradient_is_diffusion_nft() -> None:
    """``(2 A_max / D) [r (x+ - x0) / w+ - (1 - r)(x- - x0) / w-]`` with respect to x0; the velocity's is -sigma times
    it, because x0 = x_t - sigma v."""
    current, old, target = triple()
    beta, clip, sigma, x_t = 0.4, 5.0, 0.7, numbers(N, 3, 4, seed=9)
    velocity = ((x_t - current) / sigma).requires_grad_()
    loss = forward_process_loss(x_t - sigma * velocity, old, target, WEIGHTS, beta=beta, advantage_clip=clip)
    (found,) = torch.autograd.grad(loss.mean(), velocity)
    good = beta * current + (1 - beta) * old - target
    bad = (1 + beta) * old - beta * current - target
    by_good, by_bad = (x / column(x.abs().flatten(1).mean(1)) for x in (good, bad))
    r = column(WEIGHTS)
    expected = 2 * clip * sigma / (N * D) * (-r * by_good + (1 - r) * by_bad)
    torch.testing.assert_close(found, expected, **EXACT)


def test_adaptive_division_has_a_floor() -> None:
    x = numbers(2, 4)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    leaf = (x + 1e-9).requires_grad_()
    loss = forward_process_loss(leaf, x, x, half, beta=1.0, advantage_clip=5.0)
    torch.testing.assert_close(loss, torch.full_like(loss, 5.0 * 1e-18 / 1e-5), rtol=1e-6, atol=0)
    loss.sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_x0_space_is_sigma_squared_velocity_space() -> None:
    current, old, target = triple()
    sigma = torch.tensor([0.1, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    noise = numbers(N, 3, 4, seed=7)
    x_t = (1 - column(sigma)) * target + column(sigma) * noise
    velocities = [(x_t - x0) / column(sigma) for x0 in (current, old)]
    in_x0 = forward_process_loss(current, old, target, WEIGHTS, beta=0.3)
    in_velocity = forward_process_loss(*velocities, noise - target, WEIGHTS, beta=0.3)
    torch.testing.assert_close(in_x0, sigma**2 * in_velocity, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("clip", [None, 5.0])
def test_only_the_current_policy_gets_gradient(clip: float | None) -> None:
    current, old, target = (x.requires_grad_() for x in triple())
    reference = numbers(N, 3, 4, seed=5).requires_grad_()
    loss = forward_process_loss(current, old, target, WEIGHTS, beta=0.1, advantage_clip=clip)
    (loss.sum() + reference_penalty(current, reference).sum()).backward()
    assert current.grad is not None and current.grad.abs().max() > 0
    assert old.grad is None and target.grad is None and reference.grad is None


def test_reference_penalty() -> None:
    current, reference, _ = triple()
    leaf = current.clone().requires_grad_()
    penalty = reference_penalty(leaf, reference)
    expected = torch.stack([(current[n] - reference[n]).square().sum() / D for n in range(N)])
    torch.testing.assert_close(penalty, expected, **EXACT)
    penalty.sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * (current - reference) / D, **EXACT)


def test_half_precision_is_averaged_in_fp32() -> None:
    """bf16 has no number between 1 and 1.0078: the mean of 511 ones and one 2.25 would be 1."""
    current = torch.ones(1, 512, dtype=torch.bfloat16)
    current[0, 0] = 1.5
    loss = forward_process_loss(current, 0 * current, 0 * current, torch.tensor([0.5]), beta=1.0)
    assert loss.dtype == torch.float32 and loss.item() == (511 + 2.25) / 512


# --- advantages ---

GROUP = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])


def rewards() -> Tensor:
    return numbers(9, seed=3) + GROUP * 10.0


@pytest.mark.parametrize("normalise", ["group", "batch", "none"])
def test_group_advantages_sum_to_zero(normalise: str) -> None:
    advantage = group_advantage(rewards(), GROUP, normalise=normalise)
    sums = torch.zeros(3, dtype=torch.float64).index_add_(0, GROUP, advantage)
    assert sums.abs().max() < 1e-13 and advantage.abs().max() > 0.1


def test_group_advantages_against_plain_arithmetic() -> None:
    reward = rewards()
    std = {"none": [1.0] * 9, "batch": [float(reward.std(unbiased=False)) + 1e-4] * 9}
    std["group"] = [float(reward[g == GROUP].std(unbiased=False)) + 1e-4 for g in GROUP]
    for normalise, divisors in std.items():
        means = [float(reward[g == GROUP].mean()) for g in GROUP]
        expected = [(r - m) / s for r, m, s in zip(reward.tolist(), means, divisors, strict=True)]
        found = group_advantage(reward, GROUP, normalise=normalise)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_the_prompt_does_not_matter() -> None:
    """An easy prompt and a hard one: a constant added to one group changes no advantage."""
    reward = rewards()
    shifted = reward + torch.where(GROUP == 1, 100.0, 0.0)
    torch.testing.assert_close(
        group_advantage(shifted, GROUP, normalise="group"),
        group_advantage(reward, GROUP, normalise="group"),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("normalise", ["group", "batch", "none"])
def test_failed_rewards_are_left_out(normalise: str) -> None:
    reward = rewards()
    reward[4] = torch.nan
    kept = reward.isfinite()
    found = group_advantage(reward, GROUP, normalise=normalise)
    assert found[4] == 0
    torch.testing.assert_close(found[kept], group_advantage(reward[kept], GROUP[kept], normalise=normalise), **EXACT)


def test_a_group_of_failures_and_a_batch_of_failures() -> None:
    reward = rewards()
    reward[3:6] = torch.nan
    found = group_advantage(reward, GROUP)
    assert (found[3:6] == 0).all() and found.isfinite().all() and found[:3].abs().max() > 0
    for normalise in ("group", "batch", "none"):
        assert (group_advantage(torch.full((9,), torch.nan), GROUP, normalise=normalise) == 0).all()


def test_equal_rewards_give_no_advantage() -> None:
    for normalise in ("group", "batch", "none"):
        assert (group_advantage(torch.full((9,), 0.3, dtype=torch.float64), GROUP, normalise=normalise) == 0).all()


def test_group_statistics() -> None:
    reward = torch.tensor([1.0, 3.0, torch.nan, 5.0, torch.nan, torch.nan])
    mean, std = group_statistics(reward, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert mean.tolist() == [2.0, 5.0, 0.0] and std.tolist() == [1.0, 0.0, 0.0]


def test_reward_weight() -> None:
    advantage = torch.tensor([-100.0, -5.0, -2.5, 0.0, 1.0, 5.0, 1e9])
    assert reward_weight(advantage, 5.0).tolist() == [0.0, 0.0, 0.25, 0.5, pytest.approx(0.6), 1.0, 1.0]
    weight = reward_weight(numbers(1000) * 20, 5.0)
    assert weight.min() == 0 and weight.max() == 1 and ((weight > 0) & (weight < 1)).any()


def test_whitening() -> None:
    reward = numbers(50) * 7 + 3
    reward[10] = torch.nan
    white = whiten(reward)
    finite = white[white.isfinite()]
    assert white[10].isnan() and len(finite) == 49
    assert abs(float(finite.mean())) < 1e-13 and abs(float(finite.std(unbiased=False)) - 1) < 1e-4
    torch.testing.assert_close(whiten(3 * reward + 8)[:10], white[:10], rtol=1e-4, atol=1e-5)
    assert (whiten(torch.full((4,), 2.0)) == 0).all()
    lone = whiten(torch.tensor([torch.nan, 4.0]))
    assert lone[0].isnan() and lone[1] == 0
    assert whiten(torch.tensor([1.0, 3.0]), eps=1.0).tolist() == [-0.5, 0.5]


def test_combining_rewards() -> None:
    components = {"wide": numbers(40, seed=1) * 100, "narrow": numbers(40, seed=2) * 0.01}
    weights = {"wide": 1.0, "narrow": 1.0}
    white = combine(components, weights)
    raw = combine(components, weights, whitened=False)
    torch.testing.assert_close(raw, components["wide"] + components["narrow"], **EXACT)
    for name, value in components.items():
        both = torch.stack([white, value]).corrcoef()[0, 1]
        assert both > 0.5, f"{name} is not heard"
    assert torch.stack([raw, components["narrow"]]).corrcoef()[0, 1].abs() < 0.3
    heavier = combine(components, {"wide": 1.0, "narrow": 3.0})
    torch.testing.assert_close(heavier - white, 2 * whiten(components["narrow"]), **EXACT)


def test_a_component_of_weight_nought_has_no_part() -> None:
    components = {"used": numbers(6), "logged": torch.full((6,), torch.nan)}
    weights = {"used": 1.0, "logged": 0.0}
    torch.testing.assert_close(combine(components, weights), whiten(components["used"]), **EXACT)


def test_a_failed_component_fails_the_sum() -> None:
    components = {"a": torch.tensor([1.0, torch.nan, 3.0, 4.0]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert combine(components, {"a": 1.0, "b": 1.0}).isnan().tolist() == [False, True, False, False]


# --- flow matching ---


def test_noise_and_velocity_are_consistent() -> None:
    """dx_t/dsigma is the velocity, and x_t - sigma velocity is x0."""
    x0, noise = numbers(2, 3, 1, 2, 2), numbers(2, 3, 1, 2, 2, seed=1)
    for sigma in (torch.tensor([0.2, 0.9]).double(), torch.rand(2, 3, generator=torch.Generator()).double()):
        level = sigma.reshape(2, -1, 1, 1, 1)
        x_t = add_noise(x0, noise, sigma)
        torch.testing.assert_close(x_t - level * (noise - x0), x0, **EXACT)
        step = (add_noise(x0, noise, sigma + 1e-3) - x_t) / 1e-3
        torch.testing.assert_close(step, noise - x0, rtol=1e-9, atol=1e-9)
    assert torch.equal(add_noise(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(add_noise(x0, noise, torch.ones(2)), noise)


def test_warp() -> None:
    sigma = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    assert warp_sigma(sigma, 1.0).tolist() == sigma.tolist()
    by_hand = torch.tensor([0, 5 / 8, 5 / 6, 15 / 16, 1], dtype=torch.float64)
    torch.testing.assert_close(warp_sigma(sigma, 5.0), by_hand, **EXACT)
    torch.testing.assert_close(warp_sigma(warp_sigma(sigma, 5.0), 0.2), sigma, **EXACT)


@pytest.mark.parametrize(("floor", "frames"), list(itertools.product([0.0, 0.5], [False, True])))
def test_flow_matching_loss_is_its_closed_form(floor: float, frames: bool) -> None:
    velocity, x0, noise = (numbers(2, 3, 1, 2, 2, seed=seed) for seed in range(3))
    sigma = torch.tensor([[0.1, 0.3, 0.9], [0.25, 0.5, 1.0]] if frames else [0.1, 0.9], dtype=torch.float64)
    found = flow_matching_loss(velocity, x0, noise, sigma, sigma_floor=floor)
    assert found.dtype == torch.float64
    for n in range(2):
        total = 0.0
        for f in range(3):
            level = float(sigma[n, f] if frames else sigma[n])
            weight = min(level / floor, 1.0) ** 2 if floor else 1.0
            total += weight * float((velocity[n, f] - noise[n, f] + x0[n, f]).square().sum())
        assert math.isclose(found[n].item(), total / 12, rel_tol=1e-12)


def test_flow_matching_gradient() -> None:
    velocity, x0, noise = (numbers(2, 1, 1, 2, 2, seed=seed) for seed in range(3))
    leaf = velocity.clone().requires_grad_()
    flow_matching_loss(leaf, x0, noise, torch.tensor([0.5, 1.0]), sigma_floor=0.0).sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * (velocity - (noise - x0)) / 4, **EXACT)
    perfect = flow_matching_loss(noise - x0, x0, noise, torch.tensor([0.5, 1.0]), sigma_floor=0.1)
    assert (perfect == 0).all()


def test_without_a_floor_clean_frames_count_like_all_others() -> None:
    velocity, nought = torch.full((1, 2, 1, 1, 1), 3.0), torch.zeros(1, 2, 1, 1, 1)
    assert flow_matching_loss(velocity, nought, nought, torch.tensor([[0.0, 1.0]]), sigma_floor=0.0).tolist() == [9.0]
