"""Callbacks: every hook is called in its turn, faults are those of the plugin, and no number depends on them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench_helpers import RECIPE, make_student

from vidalign import registry
from vidalign.callbacks import HOOKS, Callback, EarlyStop, Training, restore, states_of
from vidalign.errors import PluginError, RecipeError, UserError
from vidalign.recipe import Recipe, load_recipe
from vidalign.recipe.explain import render
from vidalign.tracking.base import RunInfo, TrackerPlugin
from vidalign.tracking.health import Health
from vidalign.tracking.jsonl import read_history
from vidalign.tracking.tracker import Tracker
from vidalign.tracking.weights_and_biases import WandbTracker
from vidalign.trainer import Trainer


class Recorder(Callback):
    """Notes what is called; fails in the hook `broken`."""

    @dataclass
    class Config:
        broken: str = ""
        """Hook that fails."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config or self.Config())
        self.calls: list[str] = []
        self.total = 0.0

    def note(self, hook: str) -> None:
        self.calls.append(hook)
        if hook == self.config.broken:
            raise KeyError("on purpose")

    def on_start(self, training: Training) -> None:
        self.note("on_start")

    def on_experience(self, training: Training, experience: Any) -> None:
        self.note("on_experience")

    def on_evaluate(self, training: Training, evaluation: Any) -> None:
        self.note("on_evaluate")
        assert "health/held_out/mean" in evaluation.health()

    def on_save(self, training: Training, folder: Path) -> None:
        self.note("on_save")
        assert folder.is_dir()

    def on_end(self, training: Training) -> None:
        self.note("on_end")
        assert (training.run_dir / "student.safetensors").is_file()

    def on_step_end(self, training: Training, metrics: dict[str, float]) -> None:
        self.note("on_step_end")
        assert not torch.is_grad_enabled()
        self.total += 1.0
        metrics["health/recorded/mean"] = self.total

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


class Tracks(TrackerPlugin):
    """Keeps what it is told."""

    shows_clips = True

    def start(self, run: RunInfo) -> None:
        self.told: list[Any] = [run.total_steps]

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.told.append((step, values))

    def animation(self, step: int, tag: str, frames: np.ndarray, fps: float) -> None:
        self.told.append((tag, frames.dtype))

    def health(self, step: int, warning: Health) -> None:
        self.told.append(warning.name)

    def close(self) -> None:
        self.told.append("closed")


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered["callbacks"], "recorder", (Recorder, __file__))
    monkeypatch.setitem(registry._registered["trackers"], "tracks", (Tracks, __file__))


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    make_student(folder / "student.safetensors")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    quiet = ["tracking={panel: none, tensorboard: false, clips_every: 0}", "trainer.steps=4", "trainer.save_every=2"]
    return load_recipe(folder / "recipe.yaml", [f"student.path={folder}/student.safetensors", *quiet, *overrides])


def test_hooks_are_called_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    recipe = recipe_of(tmp_path, "trainer.steps=2", "trainer.eval_every=2")
    trainer = Trainer(recipe, tmp_path / "run", callbacks=[recorder])
    assert recorder.calls == [], "nothing is called before training begins"
    trainer.fit()
    step = ["on_experience", "on_step_end"]
    assert recorder.calls == ["on_start", *step, "on_experience", "on_evaluate", "on_step_end", "on_save", "on_end"]


def test_numbers_do_not_depend_on_callbacks_and_their_state_survives(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    Trainer(recipe, tmp_path / "plain").fit()
    stopped = Trainer(recipe, tmp_path / "run", callbacks=[Recorder()])
    for _ in range(2):
        stopped.train_step()
    stopped.save()
    stopped.tracker.close()
    Trainer(recipe, tmp_path / "run", resume=True, callbacks=[Recorder()]).fit()
    plain, told = (read_history(tmp_path / run / "metrics.jsonl") for run in ("plain", "run"))
    assert told.pop("health/recorded/mean") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    for history in (plain, told):
        for name in [name for name in history if name.startswith("perf/") and name != "perf/learning_rate"]:
            del history[name]
    assert plain == told


@pytest.mark.parametrize("hook", HOOKS)
def test_a_fault_is_the_plugin_s(hook: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "trainer.eval_every=2", f"callbacks={{mine: {{name: recorder, broken: {hook}}}}}")
    with pytest.raises(PluginError, match="callback 'recorder' failed") as caught:
        Trainer(recipe, tmp_path / "run").fit()
    assert "test_callbacks.py" in str(caught.value) and "KeyError" in str(caught.value)


def test_a_recipe_names_callbacks_and_their_settings(tmp_path: Path) -> None:
    judged = "trainer.eval_every=2"
    recipe = recipe_of(tmp_path, "callbacks={early_stop: {patience: 5}}", "trackers={tracks: }", judged)
    (early,) = recipe.callbacks.values()
    assert early.config == EarlyStop.Config(patience=5)
    assert load_recipe(_written(tmp_path, recipe)).callbacks == recipe.callbacks
    assert "Measurements in a row" in render(recipe, explain=True)
    assert "callbacks" not in recipe_of(tmp_path).plain(), "the hash of a recipe without callbacks stays"
    with pytest.raises(RecipeError, match="did you mean 'patience'"):
        recipe_of(tmp_path, "callbacks={early_stop: {patient: 5}}")
    with pytest.raises(RecipeError, match="did you mean 'early_stop'"):
        recipe_of(tmp_path, "callbacks={early_stopp: {}}")
    with pytest.raises(RecipeError, match="patience must be at least 1"):
        recipe_of(tmp_path, "callbacks={early_stop: {patience: 0}}")


def _written(folder: Path, recipe: Recipe) -> Path:
    file = folder / "again.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    return file


def test_early_stop_ends_a_run_for_good(tmp_path: Path) -> None:
    stop = "callbacks={early_stop: {metric: perf/learning_rate, patience: 1}}"  # it never rises
    recipe = recipe_of(tmp_path, "trainer.schedule=constant", stop)
    trainer = Trainer(recipe, tmp_path / "run")
    trainer.fit()
    assert trainer.step == 2 and trainer.checkpoints.steps() == [2]
    assert (tmp_path / "run" / "student.safetensors").is_file()
    again = Trainer(recipe, tmp_path / "run", resume=True)
    again.fit()
    assert again.step == 2


@pytest.mark.parametrize(("mode", "values", "ends"), [("max", [1, 2, 2, 1], 4), ("min", [1, 2, 0, float("nan"), 1], 5)])
def test_early_stop_waits_for_its_patience(mode: Any, values: list[float], ends: int) -> None:
    early, stopped = EarlyStop(EarlyStop.Config(patience=2, mode=mode)), []
    training: Any = SimpleNamespace(stop=stopped.append, step=0)
    for n, value in enumerate(values, 1):
        training.step = 10 * n
        early.on_step_end(training, {})
        early.on_step_end(training, {"health/held_out/mean": value})
        assert bool(stopped) == (n >= ends), n
    best = {"max": "risen in 2 measurements, 2 at step 20", "min": "fallen in 2 measurements, 0 at step 30"}[mode]
    assert stopped[0] == f"health/held_out/mean has not {best} is the best"


def test_early_stop_forgets_what_it_measured_of_another_metric() -> None:
    early = EarlyStop(EarlyStop.Config(patience=2))
    early.load_state_dict({"best": 0.5, "best_step": 3, "waited": 1, "metric": "objective/loss/mean", "mode": "max"})
    assert early.best is None and early.waited == 0
    early.load_state_dict({"best": 0.5, "best_step": 3, "waited": 1, "metric": "health/held_out/mean", "mode": "max"})
    assert (early.best, early.best_step, early.waited) == (0.5, 3, 1)


def test_a_metric_that_is_never_logged_is_reported() -> None:
    early, training = EarlyStop(EarlyStop.Config(metric="objective/los/mean")), SimpleNamespace(stop=print, step=1)
    early.on_step_end(training, {"objective/loss/mean": 1.0})  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="objective/los/mean was never logged"):
        early.on_end(training)  # type: ignore[arg-type]


def test_states_go_to_the_plugin_that_they_are_of() -> None:
    def named(plugin: str) -> Any:
        return SimpleNamespace(callbacks={"mine": SimpleNamespace(name=plugin)})

    class Counter:
        n = 3

        def state_dict(self) -> dict[str, int]:
            return {"n": self.n}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.n = state["n"]

    first: Any = {"mine": Counter(), "Other": Counter()}
    saved = states_of(first, named("counter"))
    same: Any = {"mine": Counter(), "Other": Counter()}
    for one in same.values():
        one.n = 0
    restore(same, saved, named("another"))
    assert (same["mine"].n, same["Other"].n) == (0, 3)
    restore(same, saved, named("counter"))
    assert same["mine"].n == 3
    restore(same, {"mine": {"n": 5}}, named("counter"))
    assert same["mine"].n == 5, "as version 0.2 kept it"


def test_a_measurement_that_failed_is_never_the_best() -> None:
    early, stopped = EarlyStop(EarlyStop.Config(patience=2)), []
    training: Any = SimpleNamespace(stop=stopped.append, step=0)
    for value in (float("nan"), 0.1, float("inf"), 0.5, 0.9):
        early.on_step_end(training, {"health/held_out/mean": value})
    assert not stopped and early.best == 0.9


def test_a_tracker_of_somebody_else_is_told_everything(tmp_path: Path) -> None:
    mine = Tracks()
    with Tracker(tmp_path, {}, total_steps=3, tensorboard=False, panel="none", others={"tracks": mine}) as tracker:
        tracker.log(1, {"objective/loss/mean": 1.0})
        tracker.clips(1, "rollout", torch.rand(1, 2, 3, 8, 8), ["a caption"])
        tracker.warn(Health("name", "message", "fix"))
    assert mine.told == [3, (1, {"objective/loss/mean": 1.0}), ("rollout/0", np.dtype("uint8")), "name", "closed"]
    assert (tmp_path / "metrics.jsonl").is_file()


class FakeWandb:
    """The few names of wandb that the tracker uses."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.settings: list[dict[str, Any]] = []
        self.id = "abc"

    def init(self, **settings: Any) -> FakeWandb:
        self.settings.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None: ...
    def log(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def alert(self, title: str, text: str) -> None:
        self.told.append(title)

    def finish(self) -> None:
        self.told.append("finished")

    def Video(self, data: Any, format: str) -> tuple[bytes, str]:
        return data.read(6), format


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    for start in (0, 2):
        others = {"wandb": WandbTracker(WandbTracker.Config(project="p", mode="offline"))}
        with Tracker(
            tmp_path, {"hash": 1}, total_steps=3, tensorboard=False, panel="none", start_step=start, others=others
        ) as tracker:
            tracker.log(start + 1, {"objective/loss/mean": 1.0})
            tracker.clips(start + 1, "rollout", torch.rand(1, 2, 3, 8, 8), ["a caption"])
            tracker.warn(Health("name", "message", "fix"))
    first, again = fake.settings
    assert (first["project"], first["mode"], first["config"]) == ("p", "offline", {"hash": 1})
    assert first["name"] == tmp_path.name
    assert (first["id"], again["id"], again["resume"]) == (None, "abc", "allow")
    assert fake.told[0] == {"step": 1, "objective/loss/mean": 1.0}
    assert fake.told[1] == {"step": 1, "rollout/0": (b"GIF89a", "gif")}
    assert fake.told[2:4] == ["name", "finished"]


def test_weights_and_biases_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.get("trackers", "wandb") is WandbTracker, "which imports nothing"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="needs the package wandb"):
        Trainer(recipe_of(tmp_path, "trackers={wandb: {project: p}}"), tmp_path / "run")


def test_the_documented_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "best_loss.py").write_text(source, encoding="utf-8")
    monkeypatch.setitem(registry._registered, "callbacks", dict(registry._registered["callbacks"]))
    registry.load_plugin_file(tmp_path / "best_loss.py")
    recipe = recipe_of(tmp_path, "callbacks={best_loss: {goal: 1000.0}}")
    trainer = Trainer(recipe, tmp_path / "run")
    trainer.fit()
    assert trainer.step == 1 and "objective/best_loss/mean" in read_history(tmp_path / "run" / "metrics.jsonl")
