"""Protocols: strict, pinned by hash, every mistake named; shipped ones can be run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from bench_helpers import PROTOCOL, make_folder, make_student

from vidalign.bench.cell import cell_recipe, check_same_recipe, off_prediction, timed_steps
from vidalign.bench.cost import predict
from vidalign.bench.protocol import load_protocol
from vidalign.bench.results import Cell, Predicted, Spent
from vidalign.bench.shipped import shipped_protocols
from vidalign.errors import DataError, RecipeError, UserError
from vidalign.worlds.video import captions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    return tmp_path


# --- what is pinned ---


def test_prompts_are_fixed_distinct_and_split(folder: Path) -> None:
    protocol = load_protocol("p.yaml")
    assert len(set(protocol.held_out)) == 3 and set(protocol.held_out) <= set(captions.prompts("basic/unseen"))
    assert len(set(protocol.far)) == 2 and set(protocol.far) <= set(captions.prompts("held_out_combinations"))
    assert protocol.split == {"held_out": (0, 3), "out_of_domain": (3, 5)}
    assert load_protocol("p.yaml").all_prompts == protocol.all_prompts


def test_splits_that_share_prompts_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"3 prompts are in both splits, the first is 'a .*p.yaml:3"):
        load_protocol("p.yaml", ["out_of_domain={source: world:basic/unseen, count: 3}"])


def test_the_hash_follows_conditions_not_rows(folder: Path) -> None:
    plain = load_protocol("p.yaml").hash
    assert load_protocol("p.yaml", ["objectives.more.recipe=recipe.yaml"]).hash == plain
    changes = [
        "budget.amount=131",
        "seeds=[0,1]",
        "evaluation.frames=9",
        "prompts.count=2",
        "metrics.drift.chunk_frames=2",
    ]
    hashes = {load_protocol("p.yaml", [change]).hash for change in changes}
    assert len(hashes | {plain}) == len(changes) + 1
    make_student(folder / "student.safetensors", sampler={"sigmas": [1.0, 0.5]})
    changed = load_protocol("p.yaml")
    assert changed.hash != plain and changed.pinned["evaluation"]["sigmas"] == [1.0, 0.5]


def test_versions_of_metrics_are_pinned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidalign.worlds.video.metrics import Drift

    before = load_protocol("p.yaml").hash
    monkeypatch.setattr(Drift, "version", "2")
    assert load_protocol("p.yaml").hash != before


def test_the_small_version_and_changes_have_names_of_their_own(folder: Path) -> None:
    small = load_protocol("p.yaml", small=True)
    assert (small.name, len(small.held_out), small.budget.amount, small.budget.currency) == (
        "p-small",
        2,
        70,
        "forwards",
    )
    assert load_protocol("p.yaml").name == "p"
    changed = load_protocol("p.yaml", ["budget.amount=99"])
    assert changed.name == f"p-{changed.hash[:6]}" and changed.folder == Path("runs/bench") / changed.name
    (folder / "q.yaml").write_text(PROTOCOL.split("small:")[0])
    with pytest.raises(RecipeError, match="q has no small version"):
        load_protocol("q.yaml", small=True)


def test_files_that_the_protocol_pins_are_checked(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a large red circle falls\n")
    right = hashlib.sha256((folder / "prompts.txt").read_bytes()).hexdigest()
    source = ["prompts.source=prompts.txt", "prompts.count=9"]
    assert load_protocol("p.yaml", [*source, f"prompts.sha256={right}"]).held_out == ["a large red circle falls"]
    with pytest.raises(DataError, match="prompts.txt is not what the protocol pins"):
        load_protocol("p.yaml", [*source, "prompts.sha256=abc"])
    with pytest.raises(DataError, match="student.safetensors is not what"):
        load_protocol("p.yaml", ["student.sha256=abc"])
    with pytest.raises(UserError, match="another sampler.*the protocol"):
        load_protocol("p.yaml", ["evaluation.sigmas=[1.0, 0.5]"])


# --- mistakes ---


def test_every_mistake_at_once_with_the_nearest_name(folder: Path) -> None:
    text = PROTOCOL.replace("world_scorer: {}", "world_scorr: {}, drift: {chunk_frame: 3}").replace(
        ", drift: {chunk_frames: 3}}", "}"
    )
    text = (
        text.replace("amount: 130", "amount: -1").replace("seeds: [0]\n", "seed: [0]\n").replace("astrolabe:", "base:")
    )
    (folder / "wrong.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_protocol("wrong.yaml")
    message = str(caught.value)
    for part in ("world_scorr", "did you mean 'world_scorer'", "chunk_frame", "amount must be positive", "'seeds'"):
        assert part in message
    assert "wrong.yaml:5" in message
    (folder / "wrong.yaml").write_text(re.sub(r"metrics: .*", "metrics: [world_scorer]", PROTOCOL))
    with pytest.raises(RecipeError, match="metrics must be"):
        load_protocol("wrong.yaml")
    (folder / "wrong.yaml").write_text(PROTOCOL.replace("astrolabe:", "base:"))
    with pytest.raises(RecipeError, match="'base' is a row of every table"):
        load_protocol("wrong.yaml")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_protocol("quickstrat")


# --- recipes of cells ---


def test_a_cell_trains_the_start_weights_for_its_budget(folder: Path) -> None:
    recipe = cell_recipe(load_protocol("p.yaml"), "astrolabe", 3)
    assert (recipe.seed, recipe.student.path, recipe.trainer.eval_every) == (3, "student.safetensors", 0)
    assert predict(recipe).forwards <= 130
    recipe.trainer.steps += 1
    assert predict(recipe).forwards > 130


def test_rows_that_do_not_fit(folder: Path) -> None:
    make_student(folder / "other.safetensors", height=16, width=16)
    with pytest.raises(UserError, match="other.safetensors has another height"):
        cell_recipe(load_protocol("p.yaml", ["objectives.astrolabe.student=other.safetensors"]), "astrolabe", 0)
    with pytest.raises(UserError, match="of the protocol's prompts are trained on"):
        seen = ["objectives.astrolabe.overrides=[data.prompts=world:basic/unseen]"]
        cell_recipe(load_protocol("p.yaml", seen), "astrolabe", 0)
    with pytest.raises(UserError, match="student of kind 'language'.*judges students of kind 'video'"):
        cell_recipe(load_protocol("p.yaml", ["objectives.words.recipe=tokens/opsd"]), "words", 0)


def test_a_run_is_not_gone_on_with_by_another_recipe(folder: Path) -> None:
    recipe = cell_recipe(load_protocol("p.yaml"), "astrolabe", 0)
    run = folder / "run"
    check_same_recipe(run, recipe)
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    check_same_recipe(run, recipe)
    other = cell_recipe(load_protocol("p.yaml", ["objectives.astrolabe.overrides=[trainer.clip=2]"]), "astrolabe", 0)
    with pytest.raises(UserError, match="begun with another recipe.*trainer.clip: 2.0, not 1.0"):
        check_same_recipe(run, other)


def test_seconds_are_turned_into_steps_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidalign.bench import cell

    protocol = load_protocol("p.yaml", ["budget={currency: seconds, amount: 30}"])
    assert cell_recipe(protocol, "astrolabe", 0).trainer.steps == 400
    monkeypatch.setattr(cell, "time_steps", lambda recipe, folder: 0.7)
    assert timed_steps(protocol, "astrolabe", 0, folder / "run") == 42
    monkeypatch.setattr(cell, "time_steps", lambda recipe, folder: 99.0)
    assert timed_steps(protocol, "astrolabe", 0, folder / "run") == 42, "a schedule does not change when it is resumed"


def test_a_wrong_cost_model_is_told() -> None:
    cell = Cell("a", "objective", 0, spent=Spent(forwards=1009, reward_calls=7), predicted=Predicted(1000, 8))
    assert off_prediction(cell) == ["cost: 7 reward_calls were counted, 8 predicted"]
    cell.predicted = Predicted(float("nan"), 7)
    assert off_prediction(cell) == [], "an objective that declares no cost is not measured against it"


# --- shipped ---


@pytest.mark.parametrize("name", shipped_protocols())
def test_shipped_protocols_load_in_both_sizes(name: str) -> None:
    whole, small = load_protocol(name), load_protocol(name, small=True)
    assert whole.name == name and whole.hash != small.hash
    assert f"Run: vidalign bench run {name}" in whole.header
    pictures = [tuple(picture.tobytes() for picture in getattr(one, "images", ())) for one in whole.asked]
    questions, own = list(zip(whole.all_prompts, pictures, strict=True)), len(whole.held_out)
    assert not set(questions[:own]) & set(questions[own:]), "the same words about another picture are another question"
    runnable = 0
    for row in small.objectives:
        try:
            recipe = cell_recipe(small, row, 0)
        except UserError as error:
            absent = ("best_of_n", "there is no recipe", "buffers/ar_copo holds no buffer", "runs/aligned")
            assert any(part in str(error) for part in absent), error
        else:
            runnable += 1
            assert recipe.trainer.steps > 1
    assert runnable


@pytest.mark.parametrize("row", ["../../out", "a/b", "..", "x" * 256])
def test_names_of_rows_stay_in_the_folder_of_the_protocol(row: str, folder: Path) -> None:
    file = folder / "p.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("objectives:\n", f"objectives:\n  {row}: {{recipe: recipe.yaml}}\n"), encoding="utf-8")
    with pytest.raises(RecipeError, match="is no name of a row"):
        load_protocol("p.yaml")
