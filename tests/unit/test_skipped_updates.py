"""A run with numbers that are not finite: it warns, saves nothing bad, and stops with an error."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from vidalign.errors import UserError
from vidalign.objectives.base import LossOut, Phase
from vidalign.objectives.parts.reduction import reduce_metrics
from vidalign.recipe import load_recipe
from vidalign.trainer import Trainer

RECIPE = """
student:
  name: language
  init:
    config: {model_type: qwen3, vocab_size: 102, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1,
             num_attention_heads: 2, num_key_value_heads: 2, head_dim: 16, tie_word_embeddings: true, pad_token_id: 0,
             eos_token_id: 2, max_position_embeddings: 256}
    sampling: {max_new_tokens: 8}
objective: {name: lm_sft, privileged_share: 0.5}
data: {prompts: {name: tokens, split: train, privilege: mixed}, eval_prompts: tokens:held_out}
trainer: {steps: 6, prompts_per_step: 4, micro_batch: 2, learning_rate: 0.01, save_every: 1, keep: 1}
evaluation: {count: 8}
tracking: {tensorboard: false, panel: none}
"""


def start(folder: Path, *overrides: str, resume: bool = False) -> Trainer:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return Trainer(load_recipe(file, list(overrides)), folder / "run", resume=resume)


def poison(trainer: Trainer, bad_steps: set[int]) -> None:
    """The last micro-batch of each of these steps has a loss that is not a number."""
    inner, calls = trainer.objective.loss, dict.fromkeys(bad_steps, 0)

    def loss(ctx, piece, phase) -> LossOut:  # type: ignore[no-untyped-def]
        out = inner(ctx, piece, phase)
        if ctx.step in calls:
            calls[ctx.step] += 1
            if calls[ctx.step] == 2:
                out.loss = out.loss * math.nan
        return out

    trainer.objective.loss = loss  # type: ignore[method-assign]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_score_is_of_the_weights_that_it_judged(tmp_path: Path) -> None:
    """The update of step 2 is skipped, so nothing is saved then, and step 3 was not judged."""
    trainer = start(tmp_path, "trainer.eval_every=2", "trainer.save_every=3", "trainer.keep=6")
    poison(trainer, {1})
    trainer.fit()
    manifests = [json.loads(file.read_text()) for file in (tmp_path / "run/checkpoints").glob("*/manifest.json")]
    assert {one["step"]: one["score"] is None for one in manifests} == {3: True, 4: False, 6: False}


def test_processes_agree_on_the_score_that_decides_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge may fail on one of them, and saving is a collective."""
    trainer = start(tmp_path, "trainer.eval_every=1")
    trainer.step = 1
    first = {"health/held_out/mean": 0.25}
    monkeypatch.setattr("vidalign.trainer.distributed.broadcast_object", lambda own: first)
    assert trainer._held_out() == first and trainer.score == 0.25


def test_a_run_stops_after_too_many_skipped_updates(tmp_path: Path) -> None:
    trainer = start(tmp_path)
    poison(trainer, {2, 3, 4, 5})
    with pytest.raises(UserError) as caught:
        trainer.fit()
    assert caught.value.exit_code == 3
    assert "3 updates in a row" in str(caught.value) and "step-00000002" in str(caught.value)
    assert trainer.checkpoints.steps() == [2], "nothing is written or pruned while updates are skipped"
    assert not (tmp_path / "run" / "student.safetensors").exists()
    told = [line for line in lines(tmp_path) if line.get("name") == "skipped_updates"]
    assert len(told) == 1 and told[0]["step"] == 3
    kept = json.loads((tmp_path / "run" / "failed-step-4.json").read_text())
    assert [batch["step"] for batch in kept["batches"]] == [2, 3, 4]
    assert kept["batches"][0]["ids"] == [8, 9, 10, 11] and len(kept["batches"][0]["prompts"]) == 4
    resumed = start(tmp_path, resume=True)
    assert resumed.step == 2


def test_a_good_update_between_bad_ones_begins_the_count_anew(tmp_path: Path) -> None:
    trainer = start(tmp_path, "trainer.max_skipped=2")
    poison(trainer, {1, 3})
    trainer.fit()
    assert trainer.done and sum(line.get("health/skipped_updates", 0.0) for line in lines(tmp_path)) == 2  # type: ignore


@pytest.mark.parametrize("limit", [1, 2])
def test_so_many_in_a_row_stop_the_run_and_not_one_less(limit: int, tmp_path: Path) -> None:
    trainer = start(tmp_path, f"trainer.max_skipped={limit}")
    poison(trainer, {2, 3, 4})
    with pytest.raises(UserError, match=f"^{limit} updates in a row were skipped at step {2 + limit} "):
        trainer.fit()


def test_no_update_is_tried_after_the_last_one_that_may_be_skipped(tmp_path: Path) -> None:
    """Several updates on the experience of one step."""
    trainer = start(tmp_path, "trainer.max_skipped=2")
    trainer.objective.phases = lambda step: (Phase(updates=5),)  # type: ignore[method-assign]
    inner = trainer.objective.loss

    def loss(ctx, piece, phase) -> LossOut:  # type: ignore[no-untyped-def]
        out = inner(ctx, piece, phase)
        out.loss = out.loss * math.nan
        return out

    trainer.objective.loss = loss  # type: ignore[method-assign]
    with pytest.raises(UserError, match="^2 updates in a row were skipped at step 1 "):
        trainer.fit()


def test_one_skipped_update_is_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    trainer = start(tmp_path, "trainer.steps=3")
    poison(trainer, {1})
    logged = []
    for _ in range(3):
        logged.append(trainer.train_step())
    assert [metrics["health/skipped_updates"] for metrics in logged] == [0.0, 1.0, 0.0]
    assert math.isnan(logged[1]["objective/loss/mean"]), "not the mean of the healthy micro-batch"
    assert [warning.name for warning in trainer.tracker.warnings] == ["skipped_updates"]


def test_a_run_does_not_end_well_with_a_skipped_update(tmp_path: Path) -> None:
    trainer = start(tmp_path, "trainer.steps=2")
    poison(trainer, {1})
    with pytest.raises(UserError, match="the last update was skipped"):
        trainer.fit()
    assert trainer.checkpoints.steps() == [1]


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start(tmp_path)
    trainer.train_step()
    trainer.save()
    name, weight = next(iter(trainer.ctx.roles.engines["student"].named_trainable().items()))
    weight.data[0] = math.nan
    trainer.step = 2
    with pytest.raises(UserError, match=f"student are not finite: {name}"):
        trainer.save()
    assert trainer.checkpoints.steps() == [1]
    import vidalign.trainer as module

    build = module.build_context

    def broken(*args, **kwargs):  # type: ignore[no-untyped-def]
        ctx = build(*args, **kwargs)
        next(iter(ctx.roles.engines["student"].named_trainable().values())).data[0] = math.inf
        return ctx

    monkeypatch.setattr(module, "build_context", broken)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=f"{name}.*training cannot begin"):
        start(tmp_path / "other")


def test_a_teacher_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    """Routing took its NaN for the student's advantage, and training went on without it."""
    from vidalign.students.language import LanguageStudent

    teacher = LanguageStudent.load("tokens/teacher")
    name, weight = next(iter(teacher.named_parameters()))
    weight.data.flatten()[0] = math.nan
    teacher.save(tmp_path / "teacher.safetensors")
    changes = [f"teacher.path={tmp_path / 'teacher.safetensors'}", "trainer.steps=1", "trainer.prompts_per_step=2"]
    with pytest.raises(UserError, match=f"weights of the teacher are not finite: {re.escape(name)}"):
        Trainer(load_recipe("tokens/dopd", changes), tmp_path / "run")


def test_finite_but_ruined_weights_do_not_replace_a_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate of 1e3 the first update already ruins the student, and no number is NaN."""
    rate = ("trainer.steps=4", "trainer.optimizer=adamw")
    start(tmp_path, *rate, "trainer.steps=2").fit()
    trainer = start(tmp_path, *rate, resume=True)
    for group in trainer.ctx.roles.engines["student"].optimizer.param_groups:
        group["lr"] = 1e3
    trainer.ctx.roles.engines["student"].schedule.base_lrs = [1e3]
    trainer.fit()
    assert trainer.checkpoints.steps() == [2, 4], "keep: 1, and the newest sound one"
    told = capsys.readouterr().err
    assert told.count("warning weights_exploded: the weights of the student are") == 1
    assert "that of step 2 is kept too" in told
    assert [line["step"] for line in lines(tmp_path) if line.get("name") == "weights_exploded"] == [3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_with_parts_that_are_not_finite_is_nan(bad: float) -> None:
    result = reduce_metrics({"objective/x/mean": [(0.5, 1.0), (0.5, bad)], "objective/x/max": [(1.0, 2.0), (1.0, bad)]})
    assert all(math.isnan(value) for value in result.values()) and len(result) == 2
