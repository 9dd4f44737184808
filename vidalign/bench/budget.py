"""Training under a budget: an ordinary `Trainer` that counts what it spends and judges itself on the way."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidalign.bench.cost import Counter
from vidalign.bench.results import Spent
from vidalign.cost import Cost
from vidalign.tracking.jsonl import History, read_history
from vidalign.trainer import Trainer

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.recipe import Recipe

FIELDS = ("forwards", "reward_calls", "teacher_calls", "seconds", "peak_memory_mib", "responses")
AUDITED = "world_auditor/composite"
TIMED = 3
"""Steps timed for a budget in seconds, after one that warms up."""


class BudgetedTrainer(Trainer):
    """Logs totals as `perf/spent/...` in every step, so that they survive a restart; the curve as `health/judged/...`.

    curve: judges the student as it is; called `points` times, evenly spaced, and not counted. seconds: training
    stops when they are spent, whatever the number of steps.
    """

    def __init__(
        self, recipe: Recipe, run_dir: Path, curve: Callable[[TrainContext], dict[str, float]] | None = None,
        points: int = 0, seconds: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(recipe, run_dir, resume=True)
        self.curve, self.limit = curve, seconds
        steps = recipe.trainer.steps
        self.points = {round(steps * (n + 1) / points) for n in range(points)} if curve is not None else set()
        self.counter, self.seconds, self.peak = Counter(self.ctx), 0.0, 0.0
        log = run_dir / "metrics.jsonl"
        if self.step and log.is_file():
            spent = spent_of(read_history(log), self.step)
            self.counter.start_from(Cost(spent.forwards, spent.reward_calls, spent.teacher_calls, spent.responses))
            self.seconds, self.peak = spent.seconds, spent.peak_memory_mib

    @property
    def done(self) -> bool:
        return super().done or (self.limit is not None and self.seconds >= self.limit)

    def train_step(self) -> dict[str, float]:
        self._started = time.perf_counter()
        return super().train_step()

    def _held_out(self) -> dict[str, float]:
        """The last thing before a step is logged."""
        self.seconds += time.perf_counter() - self._started
        self.peak = max(self.peak, peak_memory())
        cost = self.counter.total()
        totals = (cost.forwards, cost.reward_calls, cost.teacher_calls, self.seconds, self.peak, cost.responses)
        metrics = {f"perf/spent/{name}": float(value) for name, value in zip(FIELDS, totals, strict=True)}
        if self.curve is not None and (self.step in self.points or self.done):
            with self.counter.paused(), torch.no_grad(), self.ctx.gathered():
                judged = self.curve(self.ctx)
            metrics |= {f"health/judged/{name}": value for name, value in judged.items() if math.isfinite(value)}
            if AUDITED in judged:
                metrics["health/held_out/mean"] = judged[AUDITED]  # what the monitors of reward hacking watch
        return metrics


def spent_of(history: History, step: int | None = None) -> Spent:
    """What a run had spent after `step`, by default after its last one."""
    totals = {}
    for name in FIELDS:
        points = [value for at, value in history.get(f"perf/spent/{name}", []) if step is None or at <= step]
        totals[name] = points[-1] if points else 0.0
    return Spent(**totals)


def time_steps(recipe: Recipe, folder: Path) -> float:
    """Seconds of one training step on this machine: the mean of a few after the first."""
    trainer = BudgetedTrainer(recipe, folder)
    try:
        trainer.train_step()
        before = trainer.seconds
        for _ in range(TIMED):
            trainer.train_step()
    finally:
        trainer.tracker.close()
    return (trainer.seconds - before) / TIMED


def peak_memory() -> float:
    """Largest memory so far in MiB: of the accelerator if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
