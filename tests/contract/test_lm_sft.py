"""Language runs in the ordinary trainer: loss by hand, micro-batches, adapters, resume, evaluation, answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from objective_helpers import whole
from safetensors.torch import load_file

from vidalign.build import build_context, build_objective, build_prompts
from vidalign.context import Batch, TrainContext
from vidalign.engine.checkpoint import Checkpoints
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.base import Experience, Objective
from vidalign.recipe import load_recipe
from vidalign.students.language import LanguageStudent
from vidalign.students.samples import SampleRequest
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import Trainer
from vidalign.workflows.evaluate import evaluate_run
from vidalign.workflows.opened import open_run
from vidalign.workflows.sample import sample_run
from vidalign.workflows.saved import Saved

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
trainer: {steps: 4, prompts_per_step: 4, micro_batch: 2, learning_rate: 0.01, save_every: 2}
evaluation: {count: 8}
tracking: {tensorboard: false, panel: none}
engine: {precision: fp64}
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text("# A tiny run.\n" + text, encoding="utf-8")
    return path


def start(folder: Path, *overrides: str) -> tuple[Objective, TrainContext, Experience]:
    recipe = load_recipe(write(folder), list(overrides))
    objective = build_objective(recipe)
    ctx = build_context(recipe, objective, Tracker.silent())
    examples = build_prompts(recipe)
    with torch.no_grad():
        return objective, ctx, objective.collect(ctx, Batch(0, [examples[n] for n in range(6)], list(range(6))))


def test_the_loss_is_the_cross_entropy_of_the_response(tmp_path: Path) -> None:
    """One conversation at a time through the plain model, without padding."""
    objective, ctx, data = start(tmp_path)
    student = ctx.roles.engines["student"].network
    assert isinstance(student, LanguageStudent)
    told = data["privileged"].tolist()
    assert 0 < sum(told) < 6, "some of the samples see their privileged text"
    losses, accuracies = [], []
    for example, hint in zip(data.prompts, told, strict=True):
        before = student.chat.tokenizer(student.chat.text(example, example.privileged if hint else "")).input_ids
        after = [*student.chat.tokenizer(example.response).input_ids, 2]
        logits = student.model(input_ids=torch.tensor([before + after])).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[len(before) - 1 : -1], torch.tensor(after)))
        accuracies.append((logits[len(before) - 1 : -1].argmax(-1) == torch.tensor(after)).double().mean())
    out = whole(objective, ctx, data)
    assert out.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-9)
    accuracy = out.metrics["objective/token_accuracy/mean"].item()
    assert accuracy == pytest.approx(torch.stack(accuracies).mean().item(), abs=1e-9)


def test_every_or_no_sample_is_told(tmp_path: Path) -> None:
    assert start(tmp_path, "objective.privileged_share=1.0")[2]["privileged"].all()
    assert not start(tmp_path, "objective.privileged_share=0.0")[2]["privileged"].any()


@pytest.mark.parametrize("adapter", [[], ["student.adapter.rank=4"]], ids=["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one(adapter: list[str], tmp_path: Path) -> None:
    file = write(tmp_path)
    Trainer(load_recipe(file, adapter), tmp_path / "whole").fit()
    half = Trainer(load_recipe(file, adapter), tmp_path / "halves")
    for _ in range(2):
        half.train_step()
    half.save()
    half.tracker.close()
    Trainer(load_recipe(file, adapter), tmp_path / "halves", resume=True).fit()
    first, second = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("whole", "halves"))
    fresh = LanguageStudent.from_spec(LanguageStudent.load(tmp_path / "whole" / "student").spec)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    moved = {k for k, v in first.items() if (v - fresh.model.state_dict()[k]).abs().max() > 1e-4}
    projections = {k for k in first if "_proj.weight" in k}
    assert moved == projections if adapter else moved >= projections, "adapters are merged into the layers' matrices"


def test_a_run_is_evaluated_and_answers(tmp_path: Path) -> None:
    run = Trainer(load_recipe(write(tmp_path)), tmp_path / "run").fit()
    rows = evaluate_run(run)
    assert [row.metric for row in rows] == ["all", "chain", "list", "rewrite", "walk"]
    values = json.loads((run / "evaluation.json").read_text())["values"]["after"]
    assert len(values["exact_match/all"]) == 8 and values["exact_match/chain"].count(None) == 6
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "on the held-out exact match" in page and "kept no clips" not in page
    assert not (run / "evaluation-clips.json").exists()
    questions = ("chain : 7 | 1 : plus 5", "walk : p")
    (out,) = sample_run(run, SampleRequest(questions, tmp_path / "answers.txt")).files
    lines = out.read_text().splitlines()
    assert lines[0] == "chain : 7 | 1 : plus 5" and lines[1].startswith("->") and len(lines) == 4
    final, step = open_run(run).student, Checkpoints(run / "checkpoints").steps()[-1]
    saved = open_run(run, saved=Saved(step)).student
    assert replace(saved.spec, tokenizer=final.spec.tokenizer) == final.spec and all(
        torch.equal(tensor, final.state_dict()[name]) for name, tensor in saved.state_dict().items()
    )
    (out,) = sample_run(run, SampleRequest(questions, tmp_path / "saved.txt"), saved=Saved(step)).files
    assert out.read_text().splitlines() == lines


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    trainer = Trainer(load_recipe(write(tmp_path), ["trainer.steps=30"]), tmp_path / "run")
    losses = [trainer.train_step()["objective/loss/mean"] for _ in range(30)]
    assert sum(losses[-5:]) / 5 < 0.7 * sum(losses[:5]) / 5


def test_mistakes_are_told(tmp_path: Path) -> None:
    write(tmp_path)

    def refused(*overrides: str) -> str:
        with pytest.raises(RecipeError) as error:
            load_recipe(tmp_path / "recipe.yaml", list(overrides))
        return str(error.value)

    assert "did you mean 'train'" in refused("data.prompts=tokens:trian")
    assert "it gives captions, and the student takes examples" in refused("data.prompts=world:train")
    assert "does not support the student 'video'" in refused("student.name=video")
    assert "unknown key 'student.init.tokeniser'" in refused("student.init.tokeniser=tasks")
    assert "privileged_share must lie in 0..1" in refused("objective.privileged_share=2")
    assert "no such weights" in refused("~student.init", "student.path=tokens/nothing")
    assert "once each" in refused("student.chat.privileged='{prompt}'")


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path) -> None:
    start(tmp_path)[1].student.save(tmp_path / "teacher.safetensors")
    recipe = ["teacher.name=language", f"teacher.path={tmp_path}/teacher.safetensors"]
    _, ctx, _ = start(tmp_path, *recipe)
    assert ctx.teacher.model.chat.pad == 0, "a frozen student with its own encoder"
    other = LanguageStudent.load(tmp_path / "teacher.safetensors")
    other.chat.tokenizer.save_pretrained(tmp_path / "more")
    words = tmp_path / "more" / "tokenizer.json"
    words.write_text(words.read_text(encoding="utf-8").replace('"plus":', '"added":'), encoding="utf-8")
    other.spec.tokenizer = str(tmp_path / "more")
    other.save(tmp_path / "teacher.safetensors")
    with pytest.raises(UserError, match=r"other vocabularies .* 2 tokens differ: of '.*' the student has "):
        start(tmp_path, *recipe)
