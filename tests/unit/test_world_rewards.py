"""Rewards of the world: one pass of the scorer, failed items, and the contract of a reward."""

from __future__ import annotations

import pytest
import torch

from vidalign.errors import PluginError
from vidalign.rewards.base import CompositeReward, Reward
from vidalign.worlds.video import rewards as world
from vidalign.worlds.video import scorer
from vidalign.worlds.video.captions import balanced
from vidalign.worlds.video.renderer import clips
from vidalign.worlds.video.rewards import MotionQuality, TextAlignment, VisualQuality

CAPTIONS = balanced("train", 6, torch.Generator().manual_seed(0))
WEIGHTS = {"text_alignment": 1.0, "motion_quality": 2.0, "visual_quality": 0.5}


def videos(seed: int = 1) -> torch.Tensor:
    return clips(CAPTIONS, generator=torch.Generator().manual_seed(seed))


def composite() -> CompositeReward:
    return CompositeReward({r.name: r() for r in (TextAlignment, MotionQuality, VisualQuality)}, WEIGHTS)


def test_three_rewards_share_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    monkeypatch.setattr(world, "score", lambda *args: passes.append(1) or scorer.score(*args))
    rewards, batch = composite(), videos()
    scores = rewards.score(batch, CAPTIONS)
    assert len(passes) == 1 and set(scores) == set(WEIGHTS)
    expected = scorer.score(batch, CAPTIONS)
    assert all(torch.equal(scores[name], expected[name]) for name in WEIGHTS)
    rewards.score(batch, CAPTIONS[::-1])
    batch += 0.0
    rewards.score(batch, CAPTIONS)
    rewards.score(videos(2), CAPTIONS)
    assert len(passes) == 4, "other prompts, changed pixels and other clips are scored afresh"


def test_total_is_the_weighted_mean() -> None:
    rewards = composite()
    scores = {"text_alignment": torch.tensor([1.0, 0.2]), "motion_quality": torch.tensor([0.5, torch.nan])}
    scores["visual_quality"] = torch.tensor([0.0, 1.0])
    total = rewards.total(scores)
    assert total[0] == pytest.approx((1.0 + 2 * 0.5) / 3.5) and total[1].isnan()


def test_failed_items_are_nan() -> None:
    batch = videos()
    batch[2] = torch.inf
    with pytest.warns(UserWarning, match="'a dog runs' is no caption"):
        scores = composite().score(batch, ["a dog runs", *CAPTIONS[1:]])
    for values in scores.values():
        assert values.isnan().tolist() == [True, False, True, False, False, False]


def test_a_reward_that_breaks_the_contract_is_named() -> None:
    class Scalar:
        name = "scalar"

        def score(self, clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
            return {"scalar": clips.mean()}

    assert isinstance(Scalar(), Reward) and isinstance(TextAlignment(), Reward)
    with pytest.raises(PluginError, match="shape"):
        CompositeReward({"scalar": Scalar()}, {"scalar": 1.0}).score(videos(), CAPTIONS)
    with pytest.raises(PluginError, match="nothing"):
        CompositeReward({"other": Scalar()}, {"other": 1.0}).score(videos(), CAPTIONS)
