"""Baselines, parts of the prompts, what was spent before, and the layout of result files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from bench_helpers import PROTOCOL, make_cell, make_folder, make_results
from safetensors.torch import save_file

from vidalign.bench.before import spent_before
from vidalign.bench.cell import run_reference
from vidalign.bench.comparison import baseline_of, compare, detectable
from vidalign.bench.cost import predict
from vidalign.bench.parts import differences_of, families, means_of, starts
from vidalign.bench.protocol import load_protocol, weights_hash
from vidalign.bench.results import Cell, Results, Spent
from vidalign.bench.runner import prepare, reference_jobs
from vidalign.bench.watched import shown, watched
from vidalign.data.examples import Example
from vidalign.data.source import find_source
from vidalign.errors import DataError, RecipeError
from vidalign.recipe import load_recipe
from vidalign.writing import compact

AUDITOR, PASSED = "world_auditor/composite", "world_auditor/pass"


def results() -> Results:
    """Twenty prompts, of which hits (odd numbers) gain .2 and glides nothing; half of the starts pass."""
    cells = []
    for row, seeds, gain in (("base", (0,), 0.0), ("old", (0, 1), 0.1), ("new", (0, 1), 0.2), ("late", (7,), 0.3)):
        for seed in seeds:
            values = [0.3 + (gain + 0.01 * (n % 3) * seed if n % 2 else 0.0) for n in range(20)]
            cell = make_cell(row, seed, values, "reference" if row == "base" else "objective", AUDITOR)
            cell.metrics[PASSED] = [float(n < 10) if row == "base" else 1.0 for n in range(20)]
            cells.append(cell.sealed())
    made = make_results(cells)
    made.families = ["hit" if n % 2 else "glide" for n in range(20)]
    made.baselines = {"old": "base", "new": "old", "late": "old"}
    return made


# --- baselines ---


def test_a_row_is_compared_with_its_baseline_where_seeds_are_shared() -> None:
    made = results()
    assert [baseline_of(made, row) for row in ("old", "new", "late")] == ["base", "old", "base"]
    least = detectable(made)[AUDITOR]
    each = [compare(made, a, b)[0].detectable for a, b in (("base", "old"), ("old", "new"), ("base", "late"))]
    assert least == pytest.approx(math.sqrt(sum(x * x for x in each) / 3)) and least > 0


def test_baselines_of_a_protocol_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    plain = load_protocol("p.yaml")
    rows = ["objectives.sft={recipe: recipe.yaml, baseline: astrolabe, claim: it wins}"]
    protocol = load_protocol("p.yaml", rows)
    assert protocol.hash == plain.hash and protocol.objectives["sft"].baseline == "astrolabe"
    assert protocol.objectives["astrolabe"].baseline == "base"
    for change, message in (
        ("objectives.astrolabe.baseline=astrolab", "'astrolabe' has the baseline 'astrolab'.*neither trained"),
        ("objectives.astrolabe.baseline=astrolabe", "a row does not beat itself"),
        ("objectives.sft={recipe: recipe.yaml, baseline: astrlabe}", "did you mean 'astrolabe'"),
        ("made={astrolabe: runs/x}", "'astrolabe' is a row under objectives too"),
        ("made={base: runs/x}", "'base' is a row of every table"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_protocol("p.yaml", [change])


# --- parts ---


def test_families_and_broken_starts_are_apart() -> None:
    made = results()
    kinds = families(made)
    assert {name: len(prompts) for name, prompts in kinds.items()} == {"glide": 10, "hit": 10}
    lines = {line[0]: line[1:] for line in differences_of(made, AUDITOR, kinds)}
    assert lines["new - old"][0].startswith("+0.000 ") and lines["new - old"][1].startswith("+0.100 (")
    assert {line[0]: line[2] for line in means_of(made, AUDITOR, kinds)}["old"] == "0.405"
    by_start = starts(made, PASSED)
    assert by_start == {"broken": set(range(10, 20)), "whole": set(range(10))}
    (line,) = [line for line in differences_of(made, PASSED, by_start) if line[0] == "old - base"]
    assert line[1].startswith("+1.000") and line[2].startswith("+0.000")
    made.families = ["hit"] * 20
    assert families(made) == {} and starts(made, "other/pass") == {}


def test_a_part_of_few_prompts_has_no_interval() -> None:
    few = {"few": {1, 3, 5}, "many": set(range(20))}
    (line,) = [line for line in differences_of(results(), AUDITOR, few) if line[0] == "old - base"]
    assert "(" not in line[1] and "(" in line[2]


def test_sources_name_the_families_of_their_prompts() -> None:
    captions, rules = find_source("world:train")[0], find_source("rules:train")[0]
    assert captions.family("a large red circle glides left and hits a large blue square") == "hit"
    assert captions.family("a large red circle glides left") == "glide"
    assert rules.family(Example("p", family="F", steps=4)) == "4 steps"
    assert find_source("tokens:train")[0].family(Example("p", family="walk")) == "walk"
    assert find_source("prompts.txt")[0].family("a whale") == ""


def test_a_pass_has_a_column_beside_its_composite() -> None:
    names = [AUDITOR, "world_auditor/colour", PASSED, "gone/x", "gone/pass", "gone/composite", "other/y"]
    assert list(shown(names)) == [AUDITOR, PASSED, "gone/pass", "gone/composite", "other/y"]
    assert watched(names).passed == PASSED and watched(["exact_match/all"]).passed == ""


# --- what was spent before ---


def test_runs_and_buffers_say_what_they_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    (tmp_path / "run").mkdir()
    recipe = load_recipe("recipe.yaml", ["trainer.steps=3"])
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    steps = [{"kind": "header", "step": 0}]
    steps += [{"kind": "metrics", "step": n, "seconds": 9.0, "perf/step/seconds": 2.0} for n in (1, 2, 3)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (tmp_path / "buffer").mkdir()
    for n in range(2):
        labels = {"cost": json.dumps({"forwards": 10.0, "seconds": 1.5, "unknown": 1})}
        save_file({"x": torch.zeros(1)}, tmp_path / "buffer" / f"group-{n}.safetensors", labels)
    found = spent_before(["run", "buffer"])
    assert found.forwards == predict(recipe).forwards + 20 and found.seconds == 9.0
    assert found.reward_calls == predict(recipe).reward_calls > 0
    assert spent_before([]) == Spent()
    save_file({"x": torch.zeros(1)}, tmp_path / "buffer" / "group-2.safetensors")
    with pytest.raises(DataError, match="group-2.safetensors does not say what it cost"):
        spent_before(["buffer"])
    with pytest.raises(DataError, match="nothing does not say what it cost"):
        spent_before(["nothing"])


def test_a_student_made_for_other_rows_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    run = tmp_path / "runs" / "aligned"
    run.mkdir(parents=True)
    (run / "student.safetensors").write_bytes((tmp_path / "student.safetensors").read_bytes())
    (run / "recipe.yaml").write_text(load_recipe("recipe.yaml", ["trainer.steps=2"]).to_yaml())
    spent = {"kind": "metrics", "step": 2, "seconds": 9.0, "perf/spent/forwards": 77.0, "perf/spent/seconds": 3.0}
    (run / "metrics.jsonl").write_text(json.dumps({"kind": "header", "step": 0}) + "\n" + json.dumps(spent) + "\n")
    (tmp_path / "p.yaml").write_text(PROTOCOL + "made: {aligned: runs/aligned}\n")
    protocol = load_protocol("p.yaml")
    assert ("aligned", 0) in reference_jobs(protocol)
    prepare(protocol)
    cell, base = run_reference(protocol, "aligned"), run_reference(protocol, "base")
    assert (cell.kind, cell.before.forwards, cell.spent) == ("reference", 77.0, Spent())
    assert cell.metrics.keys() == base.metrics.keys() and cell.recipe_hash == weights_hash(protocol, "aligned")
    assert str(cell.metrics) == str(base.metrics), "the same weights, prompts and noise"


# --- files ---


def test_an_array_is_a_line() -> None:
    value = {"a": [1.5, None, "x"], "b": {"c": [[1, 2], [3]], "d": {}}, "e": [{"f": 1, "g": 2}, {"h": [1]}], "i": []}
    text = compact(value)
    assert json.loads(text) == value
    assert ' "a": [1.5, null, "x"],' in text.splitlines() and '  {"f": 1, "g": 2},' in text.splitlines()
    assert "   [1, 2]," in text.splitlines()
    with pytest.raises(ValueError, match="not JSON compliant"):
        compact([math.nan])


def test_files_of_earlier_versions_are_read() -> None:
    """They lack what a cell has gained since: its digest covers what they hold."""
    from vidalign.bench.results import digest_of, read_cell

    plain = json.loads(json.dumps(Cell("a", "objective", 0, metrics={"m/x": [0.5]}), default=vars))
    del plain["before"], plain["digest"]
    cell = read_cell({**plain, "digest": digest_of(plain)}, "here")
    assert cell.before == Spent() and cell.metrics == {"m/x": [0.5]} and cell.digest != digest_of(plain)
