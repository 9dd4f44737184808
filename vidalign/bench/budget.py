"""Training under a budget: a callback that counts what is spent and judges the student on the way."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidalign.bench.counter import Counter
from vidalign.bench.results import Spent
from vidalign.bench.watched import watched
from vidalign.callbacks import Callback, Training
from vidalign.cost import Cost
from vidalign.tracking.jsonl import History, read_history
from vidalign.trainer import Trainer

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.recipe import Recipe

FIELDS = ("forwards", "reward_calls", "teacher_calls", "seconds", "peak_memory_mib", "responses")
TIMED = 3
"""Steps timed for a budget in seconds, after one that warms up."""


class Budget(Callback):
    """Logs totals as `perf/spent/...` in every step, so that they survive a restart; the curve as `health/judged/...`.

    curve: judges the student as it is; called `points` times, evenly spaced, and not counted. seconds: training
    stops when they are spent, whatever the number of steps.
    """

    def __init__(
        self,
        curve: Callable[[TrainContext], dict[str, float]] | None = None,
        points: int = 0,
        seconds: float | None = None,
    ) -> None:
        super().__init__()
        self.curve, self.points, self.limit = curve, points, seconds
        self.seconds, self.peak = 0.0, 0.0

    def on_start(self, training: Training) -> None:
        """Go on from what an interrupted run had spent."""
        self.counter = Counter(training.ctx)
        log = training.run_dir / "metrics.jsonl"
        if training.step and log.is_file():
            spent = spent_of(read_history(log), training.step)
            self.counter.start_from(Cost(spent.forwards, spent.reward_calls, spent.teacher_calls, spent.responses))
            self.seconds, self.peak = spent.seconds, spent.peak_memory_mib
        self._stop_in_time(training)

    def on_step_end(self, training: Training, metrics: dict[str, float]) -> None:
        self.seconds += time.perf_counter() - training.step_started
        self.peak = max(self.peak, peak_memory())
        self._stop_in_time(training)
        cost = self.counter.total()
        totals = (cost.forwards, cost.reward_calls, cost.teacher_calls, self.seconds, self.peak, cost.responses)
        metrics |= {f"perf/spent/{name}": float(value) for name, value in zip(FIELDS, totals, strict=True)}
        if self.curve is not None and (training.step in self._judged_at(training) or training.done):
            with self.counter.paused(), training.ctx.kept():
                judged = self.curve(training.ctx)
            metrics |= {f"health/judged/{name}": value for name, value in judged.items() if math.isfinite(value)}
            if held_out := watched(judged).held_out:
                metrics["health/held_out/mean"] = judged[held_out]  # what the monitors of reward hacking watch

    def _stop_in_time(self, training: Training) -> None:
        if self.limit is not None and self.seconds >= self.limit:
            training.stop()

    def _judged_at(self, training: Training) -> set[int]:
        """Steps after which the curve has a point."""
        return {round(training.recipe.trainer.steps * (n + 1) / self.points) for n in range(self.points)}


def spent_of(history: History, step: int | None = None) -> Spent:
    """What a run had spent after `step`, by default after its last one."""
    totals = {}
    for name in FIELDS:
        points = [value for at, value in history.get(f"perf/spent/{name}", []) if step is None or at <= step]
        totals[name] = points[-1] if points else 0.0
    return Spent(**totals)


def time_steps(recipe: Recipe, folder: Path) -> float:
    """Seconds of one training step on this machine: the mean of a few after the first."""
    budget = Budget()
    trainer = Trainer(recipe, folder, resume=True, callbacks=[budget])
    try:
        trainer.train_step()
        before = budget.seconds
        for _ in range(TIMED):
            trainer.train_step()
    finally:
        trainer.tracker.close()
    return (budget.seconds - before) / TIMED


def peak_memory() -> float:
    """Largest memory so far in MiB: of the accelerator if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
