"""Training under a budget: totals survive a restart, judging is free, seconds stop the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_helpers import RECIPE, make_student

from vidalign.bench.budget import Budget, spent_of, time_steps
from vidalign.bench.cost import predict
from vidalign.evaluation.judging import outputs_of
from vidalign.recipe import Recipe, load_recipe
from vidalign.tracking.jsonl import read_history
from vidalign.trainer import Trainer


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    make_student(tmp_path / "student.safetensors")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    quiet = ["tracking={panel: none, tensorboard: false, clips_every: 0}", "trainer.steps=6", "trainer.save_every=2"]
    return load_recipe(tmp_path / "recipe.yaml", [f"student.path={tmp_path}/student.safetensors", *quiet])


def test_totals_survive_a_stop(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_step = Trainer.train_step

    def stopped(self: Trainer) -> dict[str, float]:
        if self.step == 3:
            raise KeyboardInterrupt
        return plain_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            Trainer(recipe, tmp_path / "run", callbacks=[Budget()]).fit()
    Trainer(recipe, tmp_path / "run", resume=True, callbacks=[Budget()]).fit()
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    spent, expected = spent_of(history), predict(recipe)
    assert (spent.forwards, spent.reward_calls) == (expected.forwards, expected.reward_calls)
    assert [step for step, _ in history["perf/spent/forwards"]] == [1, 2, 3, 4, 5, 6]
    seconds = [value for _, value in history["perf/spent/seconds"]]
    assert seconds == sorted(seconds) and seconds[0] > 0 and spent.peak_memory_mib > 50
    assert history["perf/learning_rate"][-1][1] < 0.1 * history["perf/learning_rate"][0][1], "the schedule sees its end"


def test_judging_on_the_way_is_not_counted(recipe: Recipe, tmp_path: Path) -> None:
    seen: list[int] = []

    def curve(ctx: object) -> dict[str, float]:
        generate = ctx.student.sampler(6, features=ctx.features, codec=ctx.codec)  # type: ignore[attr-defined]
        ctx.score(outputs_of(generate, ["a large red circle falls"], 0), ["a large red circle falls"])  # type: ignore[attr-defined]
        seen.append(ctx.step + 1)  # type: ignore[attr-defined]
        return {"world_auditor/composite": 0.25, "m/nothing": float("nan")}

    Trainer(recipe, tmp_path / "run", callbacks=[Budget(curve, points=3)]).fit()
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert seen == [2, 4, 6]
    assert spent_of(history).forwards == predict(recipe).forwards
    assert spent_of(history).reward_calls == predict(recipe).reward_calls
    assert history["health/judged/world_auditor/composite"] == [(2, 0.25), (4, 0.25), (6, 0.25)]
    assert history["health/held_out/mean"][0] == (2, 0.25) and "health/judged/m/nothing" not in history


def test_seconds_stop_the_run(recipe: Recipe, tmp_path: Path) -> None:
    trainer = Trainer(recipe, tmp_path / "run", callbacks=[Budget(seconds=1e-6)])
    trainer.fit()
    assert trainer.step == 1 and (tmp_path / "run" / "student.safetensors").is_file()
    again = Trainer(recipe, tmp_path / "run", resume=True, callbacks=[Budget(seconds=1e-6)])
    again.fit()
    assert again.step == 1, "spent is spent"
    assert 0 < time_steps(recipe, tmp_path / "trial") < 30
