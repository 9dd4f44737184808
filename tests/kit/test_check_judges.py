"""Every built-in reward and metric keeps its promises; one that breaks a promise is refused by that very promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import broken_judges as broken
import pytest
import torch

from vidalign import registry
from vidalign.data.source import open_source
from vidalign.testing import check_metric, check_reward
from vidalign.testing.judges import default_clips

REWARDS = [name for name, source in registry.names("rewards").items() if source == "vidalign"]
METRICS = [name for name, source in registry.names("metrics").items() if source == "vidalign"]
DISCRIMINATOR = ("discriminator={name: spatiotemporal, width: 16, layers: 1}", "teacher={name: world}")
EVENTS = ("data.prompts=events:basic/train", "data.eval_prompts=events:basic/unseen")
NEEDS = {"discriminator": DISCRIMINATOR} | {name: EVENTS for name in REWARDS if name.startswith("event_")}
"""What a reward needs of other sections of a recipe."""
OWN = {"clip_score", "pick_score", "aesthetic", "vlm_judge", "hps_v3", "video_align"}
"""Rewards and metrics that need a checkpoint: tried where a test makes one (`tests/unit/test_frame_rewards.py`)."""
SERVED = {"remote"}
"""Those that need a server: tried where the test starts one (`tests/unit/test_remote_reward.py`)."""


@pytest.mark.parametrize("name", [name for name in REWARDS if name not in OWN | SERVED])
def test_a_built_in_reward_keeps_its_promises(name: str) -> None:
    check_reward(name, NEEDS.get(name, ()))


@pytest.mark.parametrize("name", [name for name in METRICS if name not in OWN | SERVED])
def test_a_built_in_metric_keeps_its_promises(name: str) -> None:
    check_metric(name, items=event_clips(registry.get("metrics", name).judges) if name.startswith("event_") else None)


def event_clips(judged: str) -> tuple[torch.Tensor, list[str]]:
    """Captions of the event world and clips of them: what its metrics judge."""
    frames, seeds = 24 if judged == "long" else 12, 3 if judged == "seeds" else 1
    source = open_source("events:basic/train", 0, 6)
    prompts = source.first(6)
    return default_clips(prompts, source.truth, frames, seeds), prompts


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (broken.BareSetting, "1 of 1 settings without a docstring under the field: goal"),
        (broken.BadDefault, "defaults out of its own ranges: goal must be positive"),
        (broken.Whitened, "depends on the other items of its batch: whitened of item 0 is 0, and "),
        (broken.Placed, "depends on the order of its items: placed of item 0"),
        (broken.Zeroed, "gives a failing item 0.0 under 'zeroed' where NaN is promised"),
        (broken.Poisoned, "lets a failing item change the others: poisoned of item 0 is nan"),
        (broken.Dropping, "returns shape (5,) under 'dropping' for 6 items"),
        (broken.Noisy, "draws from the global generator of torch"),
        (broken.Counting, "gives other values when it judges the same items again: counting of item 0"),
        (broken.Spoiling, "changes the clips that it is given"),
        (broken.Misnamed, "returns ['brightness'] and nothing under its own name"),
        (broken.PerFrame, "returns 2 dimensions under its name"),
        (broken.Worded, "returns list under 'worded' where real numbers are promised"),
        (broken.Coarse, "gives scores that differ by"),
        (broken.Picky, "prompts, first 'a "),
    ],
)
def test_a_broken_reward_is_refused(reward: type[Any], words: str) -> None:
    with pytest.raises(AssertionError) as refusal:
        check_reward(reward)
    assert str(refusal.value).startswith(f"{reward.name} ") and words in str(refusal.value)
    assert reward.name not in registry.names("rewards"), "it was lent to the registry"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (broken.Ranked, "depends on the other items of its batch"),
        (broken.Versionless, "is called 'versionless' in version ''"),
        (broken.Series, "returns shape (5, 12) under 'all': series are for judges = 'long'"),
        (broken.Mute, "judges none of 6 items"),
        (broken.Short, "returns shape (4,) under 'all' for 5 items"),
    ],
)
def test_a_broken_metric_is_refused(metric: type[Any], words: str) -> None:
    with pytest.raises(AssertionError) as refusal:
        check_metric(metric)
    assert str(refusal.value).startswith(f"{metric.name} ") and words in str(refusal.value)


def test_classes_of_an_author_pass(tmp_path: Path) -> None:
    check_reward(broken.Bright, ["rewards.bright.goal=0.5"])
    check_metric(broken.Steady)
    (tmp_path / "prompts.txt").write_text("a heron lands\na kite dives\na lamp swings\na cat yawns\n")
    check_reward(broken.Bright, [f"data.prompts={tmp_path}/prompts.txt"])
