"""A run that goes on with other prompts than it began with says so."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from test_skipped_updates import RECIPE

from vidalign.data.source import open_source
from vidalign.errors import UsageError
from vidalign.recipe import load_recipe
from vidalign.recipe.resume import check_begun, prompts_digest
from vidalign.trainer import Trainer

QUESTIONS = [f'{{"prompt": "sum {n} {n + 1}", "response": "= {2 * n + 1}"}}' for n in range(1, 5)]
OTHER = ["trainer.steps=2", "data.prompts=p.jsonl", "data.eval_prompts=p.jsonl", "objective.privileged_share=0"]


def trainer(*more: str, resume: bool = False) -> Trainer:
    return Trainer(load_recipe("recipe.yaml", [*OTHER, *more]), "run", resume=resume)


@pytest.mark.parametrize("changed", [False, True])
def test_prompts_that_changed_are_reported(changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    Path("p.jsonl").write_text("\n".join(QUESTIONS))
    first = trainer()
    first.train_step()
    first.save()
    if changed:
        Path("p.jsonl").write_text("\n".join([*QUESTIONS[:3], QUESTIONS[3].replace("sum", "list")]))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert trainer(resume=True).step == 1
    said = [str(one.message) for one in seen if "training prompts differ" in str(one.message)]
    assert len(said) == changed


def test_the_score_that_stands_for_all_stays_on_resume_unless_the_evaluation_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    Path("p.jsonl").write_text("\n".join(line.replace("}", ', "answer": "3"}') for line in QUESTIONS))
    judged = ("trainer.eval_every=1", "evaluation.metrics={exact_match: {}}")
    first = trainer(*judged)
    first.train_step()
    first.save()
    assert first.evaluator.usual == ("exact_match", "all")
    assert trainer(*judged, resume=True).evaluator.usual == first.evaluator.usual
    assert trainer(*judged, "evaluation.count=2", resume=True).evaluator.usual is None


def test_the_digest_is_that_of_the_prompts_and_their_order(tmp_path: Path) -> None:
    found = set()
    for n, text in enumerate(["a cat\na dog\n", "a dog\na cat\n", "a cat\n", "a cat\n\n a dog"]):
        file = tmp_path / f"{n}.txt"
        file.write_text(text)
        found.add(prompts_digest(open_source(str(file), 0), str(file)))
    assert len(found) == 3 and "" not in found
    assert prompts_digest(open_source("tokens:train", 0), "tokens:train") == "", "they are made as they are needed"


def test_a_run_is_not_shortened_below_what_it_has_saved(tmp_path: Path) -> None:
    check_begun(tmp_path, [2, 3], True, 3)
    with pytest.raises(UsageError, match=r"beyond its last step - trainer.steps=2 - .* saved at step 3"):
        check_begun(tmp_path, [2, 3], True, 2)
