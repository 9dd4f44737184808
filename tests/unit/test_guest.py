"""Plugin code is a guest: what it raises, returns, changes and how long it takes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vidalign.errors import DataError, PluginError
from vidalign.guest import guarded
from vidalign.rewards.base import CompositeReward


class Given:
    name = "given"

    def __init__(self, work: Callable[[torch.Tensor], Any]) -> None:
        self.work = work

    def score(self, clips: torch.Tensor, prompts: list[str]) -> Any:
        return self.work(clips)


def score(
    work: Callable[[torch.Tensor], Any], seconds: float = 0.0, **settings: Any
) -> tuple[torch.Tensor, CompositeReward]:
    rewards = CompositeReward({"given": Given(work)}, {"given": 1.0}, seconds={"given": seconds}, **settings)
    return rewards.score(torch.ones(2, 1, 3, 4, 4), ["a", "b"])["given"], rewards


@pytest.mark.parametrize("error", [PermissionError(13, "no"), ValueError("odd"), SystemExit(0)])
@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_what_a_reward_raises_is_its_own_error(error: BaseException, seconds: float) -> None:
    def work(clips: torch.Tensor) -> None:
        raise error

    with pytest.raises(PluginError, match=f"'given' failed.*test_guest.py:\\d+.*{type(error).__name__}"):
        score(work, seconds=seconds)


def test_mistakes_that_are_told_pass() -> None:
    def work(clips: torch.Tensor) -> None:
        raise DataError("known")

    with pytest.raises(DataError, match="^known$"):
        score(work)


@pytest.mark.parametrize("values", [[1, 2.0], np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]).bfloat16()])
def test_other_numbers_are_converted_and_further_names_logged(values: Any) -> None:
    found, rewards = score(lambda clips: {"given": values, "detail": [0.5, 1.5]})
    assert found.dtype == torch.float32 and found.tolist() == [1, 2]
    assert rewards.logged == {"reward/given/detail/mean": 1.0}


@pytest.mark.parametrize("values", [["a", "b"], None, torch.zeros(2, dtype=torch.complex64), {"a": 1}])
def test_anything_else_is_refused_by_name(values: Any) -> None:
    with pytest.raises(PluginError, match="'given' returned .* under 'given'"):
        score(lambda clips: {"given": values})


def test_a_reward_cannot_change_the_clips() -> None:
    clips = torch.ones(2, 1, 3, 4, 4)
    rewards = CompositeReward({"given": Given(lambda c: {"given": c.numpy().__imul__(0)[:, 0, 0, 0, 0]})}, {"given": 1})
    rewards.score(clips, ["a", "b"])
    assert bool((clips == 1).all())


def test_clips_of_an_accelerator_are_not_copied_but_watched() -> None:
    """The meta device stands for one."""
    reward = Given(lambda clips: {"given": clips.mul_(0)[:, 0, 0, 0, 0]})
    rewards = CompositeReward({"given": reward}, {"given": 1.0})
    with pytest.raises(PluginError, match="'given' changed the clips that it was given"):
        rewards.score(torch.ones(2, 1, 3, 4, 4, device="meta"), ["a", "b"])
    reward.work = lambda clips: {"given": clips.mean((1, 2, 3, 4))}
    assert rewards.score(torch.ones(2, 1, 3, 4, 4, device="meta"), ["a", "b"])["given"].shape == (2,)


def test_a_reward_that_hangs() -> None:
    wait = threading.Event()
    with pytest.raises(PluginError, match="takes longer than 0.1 s.*trainer.reward_timeout"):
        score(lambda clips: wait.wait(60), seconds=0.1)
    with pytest.warns(UserWarning, match="not scored"):
        found, _ = score(lambda clips: wait.wait(60), seconds=0.1, on_timeout="nan")
    wait.set()
    assert bool(found.isnan().all())


def test_a_generator_of_a_plugin_is_guarded_to_its_end() -> None:
    class Cut:
        def micro_batches(self) -> Any:
            yield 1
            sys.exit(3)

    with pytest.raises(PluginError, match="SystemExit: 3"):
        guarded("objective", "cut", Cut(), ("micro_batches",)).micro_batches()
