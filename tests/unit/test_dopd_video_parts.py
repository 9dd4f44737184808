"""dopd for video students without any network: what is asked of it, and of the rewards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign.errors import UserError
from vidalign.objectives.base import Experience
from vidalign.objectives.experimental.dopd_video import DOPDVideo

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
    assert request.group.tolist() == [0, 1, 0, 1] and request.prompts == ["a", "b"]
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
