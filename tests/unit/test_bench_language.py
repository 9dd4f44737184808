"""Language students in the benchmark: exact match of bare answers, budgets in responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_helpers import CONFIGS

from vidalign.bench.cell import cell_recipe, run
from vidalign.bench.protocol import Protocol, load_protocol
from vidalign.bench.runner import read_finished
from vidalign.data.examples import Example
from vidalign.errors import UserError
from vidalign.evaluation.metrics.exact_match import ExactMatch
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec

PROTOCOL = """\
# A protocol for a test.
prompts: {source: tokens:held_out, count: 6}
out_of_domain: {source: tokens:deeper, count: 3}
student: {path: student.safetensors}
teacher: {path: teacher.safetensors}
budget: {currency: responses, amount: 25}
seeds: [0]
objectives:
  opd: {recipe: recipe.yaml}
metrics: {exact_match: {}}
evaluation: {seeds: [0, 1], temperature: 1.0, long_factor: 0, curve_points: 1, curve_prompts: 4, shown: 0}
health: {clips: 0}
"""
RECIPE = """\
# A recipe for a test.
student: {name: language, path: elsewhere.safetensors, sampling: {max_new_tokens: 4}}
teacher: {name: language, path: teacher.safetensors}
data: {prompts: tokens:train, eval_prompts: tokens:held_out}
objective: {name: opd, group_size: 2}
trainer: {steps: 400, prompts_per_step: 2, micro_batch: 4, learning_rate: 1.0e-3}
"""


@pytest.fixture
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PROTOCOL)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    spec: dict[str, Any] = {"config": CONFIGS["qwen3"], "sampling": {"max_new_tokens": 4}}
    for seed, name in enumerate(("student", "teacher", "elsewhere")):
        LanguageStudent.from_spec(LanguageSpec.from_dict(spec), seed).save(tmp_path / f"{name}.safetensors")
    return load_protocol("p.yaml")


def test_cells_of_a_language_protocol(protocol: Protocol) -> None:
    for row in ("base", "teacher", "ground_truth", "opd", "health"):
        run(protocol, row, 0)
    cells = {r: read_finished(protocol.folder / f"{r}-0.json", protocol) for r in ("base", "ground_truth", "opd")}
    assert protocol.split == {"held_out": (0, 6), "out_of_domain": (6, 9)} and len(protocol.examples) == 9
    assert cells["ground_truth"].metrics["exact_match/all"] == [1.0] * 9, "the written answers are right"
    assert cells["base"].metrics["exact_match/all"] == [0.0] * 9, "random weights know nothing"
    opd = cells["opd"]
    assert opd.spent.responses == opd.predicted.responses == 24, "6 steps of 2 prompts x 2 responses"
    assert not opd.warnings and "training/entropy" in opd.curve[-1] and opd.curve[-1]["exact_match/all"] == 0.0
    assert opd.clips is None


def test_the_budget_and_the_kind_of_student(protocol: Protocol) -> None:
    assert cell_recipe(protocol, "opd", 0).trainer.steps == 6
    with pytest.raises(UserError, match="student of kind 'video'.*judges students of kind 'language'"):
        cell_recipe(load_protocol("p.yaml", ["objectives.film.recipe=world/sft"]), "film", 0)
    with pytest.raises(UserError, match="videos or answers, not both"):
        load_protocol("p.yaml", ["out_of_domain.source=world:held_out"])


def test_a_row_learns_from_the_teacher_of_the_gap(protocol: Protocol) -> None:
    other = ["teacher.path=elsewhere.safetensors"]
    with pytest.raises(UserError, match=r"'opd' learns from teacher.*elsewhere.*objectives.opd.*add teacher.path=else"):
        cell_recipe(load_protocol("p.yaml", other), "opd", 0)
    said = load_protocol("p.yaml", [*other, "objectives.opd.overrides=[teacher.path=teacher.safetensors]"])
    assert cell_recipe(said, "opd", 0).trainer.steps == 6, "where it says so"


def test_grades_by_family() -> None:
    examples = [Example("q", answer="3", family="chain"), Example("q", answer="a b", family="list"), Example("q")]
    found = ExactMatch().grade([" 3", "a", "1"], examples)
    nan = torch.nan
    expected = {"all": [1.0, 0.0, nan], "chain": [1.0, nan, nan], "list": [nan, 0.0, nan]}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name].nan_to_num(-1), torch.tensor(values).nan_to_num(-1))
