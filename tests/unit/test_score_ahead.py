"""Judging beside the rollout: equal bits, order, errors, freed clips, and what was hidden."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidalign.errors import PluginError
from vidalign.recipe import load_recipe
from vidalign.rewards import ahead
from vidalign.rewards.ahead import WAITING
from vidalign.rewards.base import CompositeReward
from vidalign.testing.trial import finished
from vidalign.trainer import Trainer


class Brightness:
    """Mean of a clip; `each` is called with every slice before."""

    name = "bright"

    def __init__(self, each: Callable[[Tensor], None] = lambda clips: None, *, waits: bool = False) -> None:
        self.each, self.waits, self.threads = each, waits, set[str]()

    def score(self, clips: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        self.threads.add(threading.current_thread().name)
        self.each(clips)
        return {"bright": clips.flatten(1).mean(1), "first": clips[:, 0].flatten(1).mean(1)}


def composite(**rewards: Brightness) -> CompositeReward:
    return CompositeReward(rewards, dict.fromkeys(rewards, 1.0), plugins=dict.fromkeys(rewards, "bright"))


def clips_of(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n + 1, 2, 3, 4, 4, generator=generator) for n in range(count)]


def test_threads_change_no_bit_and_no_order() -> None:
    slices, found = clips_of(6), {}
    for threads in (False, True):
        slow, quick = Brightness(lambda clips: time.sleep(0.01)), Brightness(waits=True)
        scoring = composite(slow=slow, quick=quick).ahead(threads=threads)
        for clips in slices:
            scoring.submit(clips, ["a"] * len(clips))
        found[threads] = scoring.result()
        assert slow.threads == ({"rewards slow"} if threads else {"MainThread"})
        assert quick.threads == ({"rewards quick"} if threads else {"MainThread"})
    (plain, logged), (beside, also) = found[False], found[True]
    whole = torch.cat(slices)
    for name in ("slow", "quick"):
        assert torch.equal(plain[name], beside[name]) and torch.equal(plain[name], whole.flatten(1).mean(1))
        expected = float(whole[:, 0].flatten(1).mean(1).mean())
        assert logged[f"reward/{name}/first/mean"] == also[f"reward/{name}/first/mean"] == pytest.approx(expected)


@pytest.mark.parametrize("late", [0, 1])
def test_a_slice_that_came_too_late_has_no_further_names(late: int) -> None:
    """As `trainer.on_reward_timeout: nan` makes it: the score alone, NaN."""
    scoring = composite(bright=Brightness()).ahead(threads=False)
    slices = clips_of(2)
    for clips in slices:
        scoring.submit(clips, ["a"] * len(clips))
    nan = torch.full((len(slices[late]),), torch.nan)
    scoring._found["bright"][late] = {"bright": nan}
    scores, logged = scoring.result()
    kept = slices[1 - late]
    assert scores["bright"].isfinite().sum() == len(kept)
    assert logged["reward/bright/first/mean"] == pytest.approx(float(kept[:, 0].flatten(1).mean(1).mean()))


def test_what_is_hidden_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the reward moves on by 30 s: all of it is hidden where others work meanwhile, nothing of it where
    the scores are waited for."""
    clock, go, done = [0.0], threading.Event(), threading.Event()
    monkeypatch.setattr(ahead.time, "perf_counter", lambda: clock[0])

    def work(clips: Tensor) -> None:
        assert go.wait(60)
        clock[0] += 30
        done.set()

    for waits in (False, True):
        go.clear()
        done.clear()
        scoring = composite(bright=Brightness(work)).ahead(threads=True)
        (worker,) = scoring._workers
        scoring.submit(clips_of(1)[0], ["a"])
        if waits:
            plain = worker.finish
            monkeypatch.setattr(worker, "finish", lambda plain=plain: (go.set(), plain()))
        else:
            go.set()
            assert done.wait(60)
            worker._queue.put(None)
            worker._thread.join()
        logged = scoring.result()[1]
        assert (logged["perf/score/seconds"], logged["perf/score/hidden"]) == (30, 0 if waits else 1)


def test_an_error_reaches_the_caller_and_blocks_nobody() -> None:
    def fails(clips: Tensor) -> None:
        if len(clips) == 2:
            raise ValueError("two are too many")

    broken, sound = Brightness(fails), Brightness(waits=True)
    scoring = composite(broken=broken, sound=sound).ahead(threads=True)
    for clips in clips_of(3 * WAITING):
        scoring.submit(clips, ["a"] * len(clips))
    with pytest.raises(PluginError, match="two are too many"):
        scoring.result()


def test_clips_are_freed_once_they_are_judged() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def count(clips: Tensor) -> None:
        nonlocal most
        gc.collect()
        most = max(most, sum(one() is not None for one in alive))

    scoring = composite(bright=Brightness(count)).ahead(threads=True)
    for n in range(4 * WAITING):
        clips = torch.rand(2, 2, 3, 4, 4) + n
        alive.append(weakref.ref(clips))
        scoring.submit(clips, ["a", "b"])
        del clips
    scoring.result()
    gc.collect()
    assert most <= WAITING + 3, "those that wait, the one that is judged, and one in each hand"
    assert not any(one() is not None for one in alive)


@pytest.mark.parametrize("name", ["astrolabe", "ar_copo", "flow_grpo", "diffusion_nft"])
def test_a_run_is_the_same_with_and_without_threads(name: str, tmp_path: Path) -> None:
    """Rollouts in parts of two candidates, judged beside the next part: every metric and weight, bit for bit."""
    small = ["trainer.steps=2", "trainer.prompts_per_step=2", "trainer.rollout_batch=2", "objective.group_size=4"]
    quiet = ["tracking={tensorboard: false, clips_every: 1, panel: none}", "evaluation={count: 1}"]
    if name == "ar_copo":
        small.append("objective.anchors=2")
    outcomes = []
    for threads in ("true", "false"):
        recipe = load_recipe(f"world/{name}", [*small, *quiet, f"trainer.score_ahead={threads}"])
        outcomes.append(finished(Trainer(recipe, tmp_path / threads)))
    one, other = ([{k: v for k, v in row.items() if not k.startswith("perf/")} for row in o.metrics] for o in outcomes)
    assert one == other and len(one) == 2 and "reward/mean" in one[0]
    weights = [outcome.weights for outcome in outcomes]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
