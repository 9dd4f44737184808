"""Motion by block matching: displacements that are known, and which corruptions it sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidalign.data.source import open_source
from vidalign.rewards.motion import MotionReward, amount_of, block_flow, in_band, smoothness
from vidalign.testing import check_reward
from vidalign.worlds.video.perturbations import table


def textured(shifts: list[tuple[int, int]], size: int = 32) -> Tensor:
    """A noise picture ``[F, size, size]`` that moves down and right by whole pixels from frame to frame."""
    picture = torch.rand(96, 96, generator=torch.Generator().manual_seed(0))
    at, frames = [32, 32], []
    for down, right in [(0, 0), *shifts]:
        at = [at[0] - down, at[1] - right]
        frames.append(picture[at[0] : at[0] + size, at[1] : at[1] + size])
    return torch.stack(frames)


def test_the_displacement_of_blocks_is_found() -> None:
    """Exact: inner blocks of a picture that is moved by whole pixels. The border has nothing to be compared with."""
    shifts = [(1, 0), (0, -3), (2, 4)]
    flow = block_flow(textured(shifts)[None], 8, 6)
    assert flow.shape == (1, 3, 2, 4, 4)
    for step, (down, right) in enumerate(shifts):
        inner = flow[0, step, :, 1:-1, 1:-1]
        assert (inner == torch.tensor([down, right]).view(2, 1, 1)).all()


def test_amount_and_smoothness_of_known_motion() -> None:
    steady, stopping = (block_flow(textured(s)[None], 8, 6)[..., 1:-1, 1:-1] for s in ([(0, 3)] * 4, [(0, 3), (0, 0)]))
    assert amount_of(steady, 1.0).tolist() == [3.0] and smoothness(steady).tolist() == [1.0]
    assert amount_of(stopping, 1.0).tolist() == [1.5] and smoothness(stopping).tolist() == [0.0]
    back = block_flow(textured([(0, 3), (0, -3)])[None], 8, 6)[..., 1:-1, 1:-1]
    assert smoothness(back).tolist() == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [(0.0, 0), (0.05, 0), (0.1, 1), (0.4, 1), (0.8, 1), (1.6, 0), (0.1 / 2**0.5, 0.5), (0.8 * 2**0.5, 0.5)],
)
def test_band(amount: float, expected: float) -> None:
    assert in_band(amount, 0.1, 0.8) == pytest.approx(expected, abs=1e-6)


def test_faster_playback_moves_more() -> None:
    clip = textured([(0, 2)] * 4)[None, :, None].expand(1, 5, 3, 32, 32)
    slow, fast = (MotionReward().score(clip, [""], fps)["amount"] for fps in (8.0, 16.0))
    assert float(slow) == pytest.approx(2 * 8 / 32, rel=0.05) and float(fast) == pytest.approx(2 * float(slow))


def test_it_separates_motion_from_its_corruptions() -> None:
    """Of the world's own table. Blind to the caption, to blur and to the direction of time, as its page says."""
    prompts = [c for c in open_source("world:basic/unseen", 0).first(48) if "rests" not in c][:24]
    rows = {name: clips for name, clips, _ in table(prompts, 12, torch.Generator().manual_seed(0))}
    judge = MotionReward()
    found = {name: float(judge.score(clips.float(), prompts, 8.0)["motion"].mean()) for name, clips in rows.items()}
    truth = found["ground truth"]
    assert truth > 0.5
    for name in ("uniform noise", "frozen first frame", "shuffled frames", "jitter 2 px", "empty scene"):
        assert found[name] < truth / 2, name
    for name in ("blur 2 px", "time reversed"):
        assert abs(found[name] - truth) < 0.1, name


def test_large_frames_are_reduced() -> None:
    small = textured([(0, 2)] * 3)[None, :, None].expand(1, 4, 3, 32, 32)
    large = small.repeat_interleave(8, 3).repeat_interleave(8, 4)
    config = MotionReward.Config(side=32)
    one, other = (MotionReward(config).score(clips, [""]) for clips in (small, large))
    torch.testing.assert_close(one["amount"], other["amount"], rtol=0.05, atol=0)


def test_it_keeps_the_promises_of_a_reward() -> None:
    clips = textured([(0, 2), (1, 1), (0, 3)])[None, :, None].expand(2, 4, 3, 32, 32).clone()
    clips[1] = clips[1].flip(0)
    check_reward("motion", items=(clips, ["a", "b"]))


def test_settings() -> None:
    with pytest.raises(ValueError, match="high must be at least low"):
        MotionReward.Config(low=2.0, high=1.0)
    assert MotionReward().score(torch.rand(1, 1, 3, 8, 8), [""])["motion"].isnan().all(), "one frame has no motion"
