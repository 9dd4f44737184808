"""The small sums that objectives share, against numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidalign.losses.advantages import SignalFloor
from vidalign.objectives.base import Experience, LossOut
from vidalign.objectives.parts.forward_process import old_rule
from vidalign.objectives.parts.reduction import reduce_metrics, weighted_metrics
from vidalign.objectives.parts.rollouts import candidate_ids, replay_gap
from vidalign.objectives.parts.scoring import (
    advantage_metrics,
    compute_advantages,
    grouped_scores,
    motion,
    score_metrics,
)
from vidalign.objectives.parts.tokens import mask_of, token_weights

NAN = math.nan


def test_numbers_of_candidates() -> None:
    assert candidate_ids([3, 5], 2).tolist() == [6, 7, 10, 11]
    assert candidate_ids([4], 1).tolist() == [4]


def test_motion_is_the_mean_difference_of_consecutive_frames() -> None:
    brightness = torch.tensor([[0.0, 0.5, 0.25], [1.0, 1.0, 0.0]])
    found = motion(brightness[:, :, None, None, None].expand(2, 3, 3, 2, 2))
    assert found == {"health/motion/mean": pytest.approx((0.5 + 0.25 + 0.0 + 1.0) / 4)}


def test_what_is_logged_of_scores() -> None:
    group = torch.tensor([0, 0, 1, 1])
    found = score_metrics({"": torch.tensor([1.0, 3.0, 5.0, 5.0]), "a": torch.tensor([1.0, NAN, 2.0, 6.0])}, group)
    assert found == {"reward/mean": 3.5, "reward/group_std": 0.5, "reward/a/mean": 3.0, "reward/a/group_std": 1.0}


def test_what_is_logged_of_advantages() -> None:
    """A group of equal rewards, and one whose spread is the largest that still counts as none."""
    reward = torch.tensor([1.0, 1.0, 0.0, 2.0, -1e-6, 1e-6, NAN, 3.0], dtype=torch.float64)
    advantage = torch.tensor([0.0, 0.0, -3.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    found = advantage_metrics(reward, advantage, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert found == {
        "health/reward_nan/mean": 1 / 8,
        "health/zero_std_groups/mean": 3 / 4,
        "objective/advantage/max": 3,
    }


def test_scores_by_prompt_and_the_clips_that_are_shown() -> None:
    shown: list[Any] = []
    ctx: Any = SimpleNamespace(show=lambda *arguments: shown.append(arguments))
    request: Any = SimpleNamespace(clips="clips", prompt_of_clip="prompts")
    data = Experience({}, torch.tensor([0, 0, 1, 1]), None, ["a", "b"], scores={"bright": torch.arange(4)})
    assert grouped_scores(ctx, data)["bright"].tolist() == [[0, 1], [2, 3]] and shown == []
    data.request = request
    assert grouped_scores(ctx, data)["bright"].tolist() == [[0, 1], [2, 3]]
    assert shown == [("clips", "prompts", data.scores)]


def test_a_reward_that_learns_is_compared_inside_a_prompt_alone() -> None:
    scores = {"bright": torch.tensor([[1.0, 3.0], [10.0, 14.0]]), "learned": torch.tensor([[1.0, 3.0], [10.0, 14.0]])}
    ctx: Any = SimpleNamespace(
        signal=SignalFloor(),
        reward_weights={"bright": 1.0, "learned": 3.0},
        rewards=SimpleNamespace(trainable=[SimpleNamespace(name="learned")]),
        world_size=1,
        gather=lambda value: value,
    )
    judged = compute_advantages(ctx, scores, combination="raw_sum", normalise="none")
    assert judged.advantage.tolist() == [[-4.0, 4.0], [-8.0, 8.0]]
    assert judged.scores["bright"].tolist() == [scores["bright"].tolist()]
    assert judged.scores["learned"].tolist() == [[[-1.0, 1.0], [-2.0, 2.0]]]
    assert judged.metrics["reward/mean"] == 7.0 and judged.metrics["reward/group_std"] == 1.5, "a weighted mean"


def test_the_gap_of_a_replay() -> None:
    """Root mean square over spread, of which 0.05 is the least; the largest of the samples."""
    recorded = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    off = torch.tensor([[0.3, 0.4, 0.0, 0.0], [0.0, 0.01, 0.01, 0.0]], dtype=torch.float64)
    assert float(replay_gap(recorded[:1] + off[:1], recorded[:1])) == pytest.approx(0.25 / math.sqrt(4 / 3))
    assert float(replay_gap(recorded[1:] + off[1:], recorded[1:])) == pytest.approx(math.sqrt(0.5e-4) / 0.05)
    both = replay_gap(recorded + off, recorded)
    assert float(both) == pytest.approx(0.25 / math.sqrt(4 / 3)) and both.shape == ()
    assert replay_gap(recorded.bfloat16(), recorded.bfloat16()).dtype == torch.float32


def test_weights_of_tokens_and_the_mask_of_the_longest() -> None:
    response = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    data: Any = {"response": response}
    assert mask_of(data).tolist() == response[:, :2].tolist()
    assert token_weights(mask_of(data)).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3])
    data = {"response": response[2:]}
    assert mask_of(data).shape == (1, 1)


def test_metrics_are_weighted_by_their_share_or_their_count() -> None:
    loss, one = torch.tensor(2.0), torch.tensor(1.0)
    out = LossOut(loss, {"a/mean": one, "b/mean": 3 * one, "c/mean": one}, counts={"b/mean": 5, "c/mean": 0})
    assert weighted_metrics(out, 0.25) == {
        "objective/loss/mean": (0.25, 2.0),
        "a/mean": (0.25, 1.0),
        "b/mean": (5.0, 3.0),
    }
    parts = {"a/mean": [(1.0, 2.0), (3.0, 6.0)], "a/max": [(1.0, 2.0), (3.0, -6.0)]}
    assert reduce_metrics(parts) == {"a/mean": 5.0, "a/max": 2.0}


def test_slices_are_whole_groups_or_equal_parts_of_one() -> None:
    def slices(prompts: int, group: int, size: int) -> list[tuple[int, int]]:
        places = torch.arange(prompts).repeat_interleave(group)
        return list(Experience({}, places, None, ["p"] * prompts).slices(size))

    assert slices(3, 4, 8) == [(0, 8), (8, 12)] and slices(3, 4, 7) == [(0, 4), (4, 8), (8, 12)]
    assert slices(1, 6, 5) == slices(1, 6, 3) == [(0, 3), (3, 6)] and slices(1, 6, 1) == [(n, n + 1) for n in range(6)]


def test_an_old_policy_without_decay_is_the_current_one() -> None:
    assert old_rule(0) == "current" and old_rule(0.5) == old_rule(None) == "own"
