"""dopd for video students without any network: what is asked of it, and of the rewards."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign.cost import Cost
from vidalign.errors import UserError
from vidalign.losses.routing import Regime
from vidalign.objectives.base import Experience, MicroBatch, Phase
from vidalign.objectives.experimental.dopd_video import DOPDVideo
from vidalign.students.video.rollout import RolloutPlan

CHUNK = 2


def objective(**settings: Any) -> DOPDVideo:
    return DOPDVideo(DOPDVideo.Config(**settings))


def numbers(seed: int) -> Tensor:
    """Three chunks of two samples."""
    return torch.randn(2, 3 * CHUNK, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def experience(**more: Tensor) -> Experience:
    tensors = {"x_t": numbers(0), "latents": numbers(1), "sigma": torch.rand(2, 3 * CHUNK)}
    return Experience(tensors | more, torch.arange(2), torch.zeros(2, 1, 1), ["a", "b"])


@pytest.mark.parametrize(("height", "width", "fits"), [(16, 24, True), (12, 16, False), (16, 12, False)])
def test_blocks_divide_both_sides(height: int, width: int, fits: bool) -> None:
    student: Any = SimpleNamespace(chunk_shape=(CHUNK, 1, height, width))
    if fits:
        objective(block=8).check_models(student, None)  # type: ignore[arg-type]
    else:
        with pytest.raises(UserError, match=f"do not divide latents of {height} x {width}"):
            objective(block=8).check_models(student, None)  # type: ignore[arg-type]


def test_rewards_judge_what_teacher_and_privileged_student_predict() -> None:
    data = experience(teacher=numbers(2), own=numbers(3))
    ctx: Any = SimpleNamespace(rewards=object(), decode=lambda latents: latents)
    request = objective()._request(ctx, data)
    assert request is not None
    level = data["sigma"].view(2, -1, 1, 1, 1)
    expected = [data["x_t"] - level * data[name] for name in ("teacher", "own")]
    torch.testing.assert_close(request.clips, torch.cat(expected))
    assert request.group_index.tolist() == [0, 1, 0, 1] and request.prompts == ["a", "b"]
    ctx.rewards = None
    assert objective()._request(ctx, data) is None


def test_every_chunk_but_the_last_is_seen_between_its_past_and_its_future() -> None:
    data, seen = experience(privilege=numbers(4)), []

    def bidirectional(frames: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        seen.append((frames, levels))
        return torch.full_like(frames, float(len(seen)))

    def velocity(x_t: Tensor, sigma: Tensor, text: Tensor, context: None, clean: Tensor) -> Tensor:
        assert x_t is data["x_t"] and clean is data["latents"]
        return torch.full_like(x_t, 9.0)

    network: Any = SimpleNamespace(bidirectional=bidirectional, velocity=velocity)
    ctx: Any = SimpleNamespace(chunk_frames=CHUNK)
    found = objective(privilege="future")._with_future(ctx, network, data)
    assert found[0, :, 0, 0, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 9.0, 9.0]
    clean, noisy, future = data["latents"], data["x_t"], data["privilege"]
    first, second = [noisy[:, :2], future[:, 2:]], [clean[:, :2], noisy[:, 2:4], future[:, 4:]]
    for (frames, levels), parts, here in zip(seen, (first, second), (slice(0, 2), slice(2, 4)), strict=True):
        assert torch.equal(frames, torch.cat(parts, 1))
        assert torch.equal(levels[:, here], data["sigma"][:, here]) and (levels != 0).sum() == 2 * CHUNK


def constant(*values: float, chunks: int = 1) -> Tensor:
    """One value for each sample and chunk in turn, ``[N, F, 1, 8, 8]``."""
    each = torch.tensor(values, dtype=torch.float64).view(-1, chunks).repeat_interleave(CHUNK, 1)
    return each[:, :, None, None, None].expand(-1, -1, 1, 8, 8).clone()


def routed(gather: Any) -> tuple[Experience, dict[str, float]]:
    """Three samples whose gap is 4 w: the teacher is nearer to the bare student than the privileged one is, farther,
    and as near."""
    bare, own, teacher = constant(2, 2, 2), constant(4, 3, 1), constant(2, 5, 3)
    x_t, half = constant(1, 1, 1), torch.full((3, CHUNK), 0.5, dtype=torch.float64)
    tensors = {"x_t": x_t, "latents": x_t + torch.randn(3, CHUNK, 1, 8, 8), "sigma": half, "weight": half}
    tensors |= {"step": torch.zeros(3, 1).long(), "privileged": torch.zeros(3).bool(), "x0": x_t - 0.5 * bare + 0.1}
    data = Experience(tensors, torch.arange(3), torch.zeros(3, 1, 1), ["a", "b", "c"])
    ctx: Any = SimpleNamespace(chunk_frames=CHUNK, gather=gather)
    return data, objective(trim=0.0)._route(ctx, data, bare, own, teacher)


def test_a_teacher_that_is_at_least_as_near_is_endorsed() -> None:
    data, metrics = routed(lambda value: value)
    assert [Regime(r) for r in data["regime"].flatten().tolist()] == [Regime.HT, Regime.HS, Regime.HT]
    assert metrics["objective/endorsed/mean"] == pytest.approx(2 / 3)
    assert metrics["objective/capability/mean"] == pytest.approx(2.0)
    assert metrics["health/on_policy_gap/max"] == pytest.approx(0.1 / 0.05, rel=1e-5), "over the least spread"
    largest = routed(lambda value: torch.cat([value, 0 * value]))[1]["health/on_policy_gap/max"]
    assert largest == pytest.approx(2.0, rel=1e-5), "of all ranks"


def test_rewards_endorse_by_clip_and_the_distance_where_one_failed() -> None:
    """Raw sums decide the first clip; then a worse one, equal ones, and two of which one score failed."""
    first = torch.tensor([2.0, -100.0, 0.0, 0.0, torch.nan, 0.0, 100.0, 0.0, torch.nan, 0.0])
    second = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    group = torch.arange(5)
    data = Experience({}, group, None, [""] * 5, scores={"wide": first, "narrow": second})
    ctx: Any = SimpleNamespace(reward_weights={"wide": 1.0, "narrow": 1.0})
    for nearer in (True, False):
        found = objective()._endorsed(ctx, data, torch.full((5, 2, 1, 1), nearer))
        assert found[:, 0, 0, 0].tolist() == found[:, 1, 0, 0].tolist() == [True, False, True, nearer, nearer]
    data.scores = {}
    assert not objective()._endorsed(ctx, data, torch.zeros(5, 2, 1, 1).bool()).any()


def test_the_loss_pulls_towards_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value by hand, with w = 1/2 and a shift of 1: 1/2 of means, ``ln2 (1 - exp(-1 / (8 ln2)))`` of pixels."""
    velocity = torch.zeros(2, 2 * CHUNK, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    regime = torch.tensor([[Regime.LH, Regime.LL], [Regime.HT, Regime.HS]]).view(2, 2, 1, 1)
    shift = constant(1, 1, 1, -1, chunks=2)
    weight = torch.full((2, 2 * CHUNK), 0.5, dtype=torch.float64)
    tensors = {"shift": shift, "weight": weight, "regime": regime, "privileged": torch.zeros(2).bool()}
    data = Experience(tensors, torch.arange(2), None, ["a", "b"])
    one = objective()
    monkeypatch.setattr(one, "_velocity", lambda *given, **named: velocity)
    ctx: Any = SimpleNamespace(chunk_frames=CHUNK, student=None)
    out = one.loss(ctx, MicroBatch(data, 1.0), Phase())
    robust = math.log(2) * (1 - math.exp(-1 / (8 * math.log(2))))
    parts = {"lh": 0.5 / 4, "ll": 0.5 / 4, "ht": robust / 4, "hs": 0.5 / 4}
    assert {name: float(out.metrics[f"objective/loss_{name}/mean"]) for name in parts} == pytest.approx(parts)
    assert out.loss.item() == pytest.approx(0.6 * 0.125 + 0.3 * 0.125 + robust / 4 + 0.6 * 0.125)
    out.loss.backward()
    assert velocity.grad is not None and (velocity.grad * shift < 0).all(), "a descent step goes where the shift points"


@pytest.mark.parametrize(
    ("privilege", "share", "passes", "teacher"),
    [
        ("none", 0.0, 6, 1),
        ("caption", 0.0, 9, 1),
        ("caption", 1.0, 9, 1),
        ("future", 0.0, 15, 3),
        ("future", 1.0, 21, 3),
    ],
)
def test_what_a_step_costs(privilege: str, share: float, passes: int, teacher: int) -> None:
    """Of 2 prompts with 2 clips of 3 chunks, a pass of which is 3 forwards; 9 where every chunk sees its future."""
    asked: list[RolloutPlan] = []
    sizes: Any = SimpleNamespace(prompts=2, chunks=3, rewards=5, teacher_forcing=lambda chunks: chunks)
    sizes.rollout = lambda plan: asked.append(plan) or 100
    sizes.shared_generator = lambda purpose: torch.Generator()
    one = objective(privilege=privilege, privileged_share=share, group_size=2)
    assert one.cost(sizes) == Cost(forwards=100 + 4 * passes, reward_calls=2 * 4 * 5, teacher_calls=4 * teacher)
    assert asked == [RolloutPlan(prefix=0, branch=3, group_size=2)]
