"""Callbacks: code that runs beside the training loop without changing an update.

A recipe names them, ``callbacks: {early_stop: {patience: 5}}``; Python passes them to the trainer,
``Trainer(recipe, callbacks=[...])``. Every process calls every hook; callbacks of the recipe come first.
What a step trains on must not depend on a callback.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vidalign.ranges import require

if TYPE_CHECKING:
    from pathlib import Path

    from vidalign.context import TrainContext
    from vidalign.evaluation.evaluator import Evaluation
    from vidalign.objectives.base import Experience, Objective
    from vidalign.recipe import Recipe
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import Choice
    from vidalign.tracking.tracker import Tracker

HOOKS = ("on_start", "on_experience", "on_step_end", "on_evaluate", "on_save", "on_end")
CALLS = (*HOOKS, "state_dict", "load_state_dict")
"""What of a callback from elsewhere is guarded."""


class Training(Protocol):
    """What a callback sees of the trainer."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def run_dir(self) -> Path: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def ctx(self) -> TrainContext: ...
    @property
    def tracker(self) -> Tracker: ...
    @property
    def step(self) -> int:
        """Steps that are finished."""

    @property
    def step_started(self) -> float:
        """`time.perf_counter()` at the beginning of the step."""

    @property
    def done(self) -> bool:
        """Whether no step is left."""

    def stop(self, why: str = "") -> None:
        """End training after this step, as if it were the last one; one process is enough. `why` is shown at the
        end."""


class Callback:
    """Base of every callback; a subclass overrides the hooks that it needs."""

    name: ClassVar[str] = ""

    @dataclass
    class Config:
        """No settings."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def on_start(self, training: Training) -> None:
        """Before the first step of this process, of a resumed run too."""

    def on_experience(self, training: Training, experience: Experience) -> None:
        """After `collect` and the judgement, before the first phase of the objective; without gradient."""

    def on_step_end(self, training: Training, metrics: dict[str, float]) -> None:
        """After the follow-up of a step, before its metrics are logged; what is added to them is logged too."""

    def on_evaluate(self, training: Training, evaluation: Evaluation) -> None:
        """After an evaluation on held-out prompts during training (``trainer.eval_every``)."""

    def on_save(self, training: Training, folder: Path) -> None:
        """After a checkpoint was written in `folder`."""

    def on_end(self, training: Training) -> None:
        """After the student was saved; not when training ends in an error."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, "a callback that saves state restores it"


HELD_OUT = "health/held_out/mean"
"""The metric of evaluations on held-out prompts during training."""


class EarlyStop(Callback):
    """Stops training when a metric no longer improves."""

    name = "early_stop"

    @dataclass
    class Config:
        metric: str = HELD_OUT
        """Name of the metric; only steps that log it count. The held-out score needs ``trainer.eval_every``."""
        patience: int = 3
        """Measurements in a row without improvement after which training stops."""
        min_change: float = 0.0
        """Least improvement that counts."""
        mode: Literal["max", "min"] = "max"
        """Whether larger or smaller is better."""

        def __post_init__(self) -> None:
            require(self, "patience", least=1)
            require(self, "min_change", least=0)

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())
        self.best: float | None = None
        self.best_step = 0
        """Step that the best measurement belongs to."""
        self.waited = 0
        """Measurements since the best one."""

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Refuse to wait for a score that is never measured."""
        chosen: dict[str, Choice] = getattr(draft.recipe, "callbacks", {})
        for label, choice in chosen.items() if draft.sound("trainer") else ():
            settings, never = choice.config, draft.recipe.trainer.eval_every == 0
            if isinstance(settings, cls.Config) and settings.metric == HELD_OUT and never:
                why = f"{HELD_OUT} is measured every trainer.eval_every steps, which is 0: never"
                fix = "set trainer.eval_every (20), or give another metric"
                draft.refuse(f"{label!r} would never stop the run", f"callbacks.{label}", why, fix)

    def on_start(self, training: Training) -> None:
        self._stop_in_time(training)

    def on_step_end(self, training: Training, metrics: dict[str, float]) -> None:
        value = metrics.get(self.config.metric)
        if value is None:
            return
        sign = 1.0 if self.config.mode == "max" else -1.0
        better = self.best is None or sign * (value - self.best) > self.config.min_change
        if better and math.isfinite(value):
            self.best, self.best_step, self.waited = value, training.step, 0
        else:
            self.waited += 1  # so do NaN and infinity
        self._stop_in_time(training)

    def on_end(self, training: Training) -> None:
        if self.best is None and not self.waited:
            what = f"{self.config.metric} was never logged, so early_stop could not stop the run"
            warnings.warn(f"{what}: metrics.jsonl has the names", stacklevel=2)

    def _stop_in_time(self, training: Training) -> None:
        if self.waited < self.config.patience:
            return
        moved, times = {"max": "risen", "min": "fallen"}[self.config.mode], f"{self.waited} measurements"
        best = "" if self.best is None else f", {self.best:.4g} at step {self.best_step} is the best"
        training.stop(f"{self.config.metric} has not {moved} in {times}{best}")

    def state_dict(self) -> dict[str, Any]:
        measured = {"metric": self.config.metric, "mode": self.config.mode}
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, **measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = (self.config.metric, self.config.mode)
        if (state.get("metric", own[0]), state.get("mode", own[1])) != own:
            return  # measurements of something else
        self.best, self.waited = state["best"], state["waited"]
        self.best_step = state.get("best_step", 0)  # runs of version 0.2 did not keep it


def states_of(callbacks: Mapping[str, Callback], recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint keeps of callbacks by their labels: the plugin of each, '' for an object, and its state."""
    return {name: {"plugin": _plugin_of(name, recipe), "state": one.state_dict()} for name, one in callbacks.items()}


def restore(callbacks: Mapping[str, Callback], saved: Mapping[str, Any], recipe: Recipe) -> None:
    """Give callbacks the states that a checkpoint has of the same plugins under the same labels."""
    for name, kept in saved.items():
        plugin = _plugin_of(name, recipe)
        if kept.keys() != {"plugin", "state"}:  # of version 0.2
            kept = {"plugin": plugin, "state": kept}
        if name in callbacks and kept["plugin"] == plugin:
            callbacks[name].load_state_dict(kept["state"])


def _plugin_of(label: str, recipe: Recipe) -> str:
    """The plugin that a recipe has under a label; '' for a callback that was passed as an object."""
    return recipe.callbacks[label].name if label in recipe.callbacks else ""
