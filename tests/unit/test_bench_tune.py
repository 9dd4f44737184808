"""`vidalign bench tune`: the same number of trials for every row, on training prompts, gone on with after a stop.

The cells here are not trained: their scores follow from the settings of the trial.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from bench_helpers import PROTOCOL, make_folder

from vidalign.bench import runner
from vidalign.bench.protocol import Protocol, load_protocol
from vidalign.bench.results import Cell
from vidalign.bench.runner import BenchRun, Job
from vidalign.bench.shipped import shipped_protocols
from vidalign.bench.tune import TuneRun, tuning_table, with_rows_of
from vidalign.cli import main
from vidalign.errors import Interrupted, RecipeError, UserError

METRIC = "world_scorer/composite"
TUNING = f"tuning: {{prompts: {{source: world:basic/train, count: 3}}, trials: 8, metric: {METRIC}}}\n"
SFT = "{recipe: recipe.yaml, overrides: ['objective={name: sft}', '~rewards.text_alignment', teacher.name=world]}"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The cells that are run; one of a learning rate of 0.03 is best, one above .05 fails."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    text = PROTOCOL.replace("objectives:\n", f"objectives:\n  sft: {SFT}\n").replace("amount: 130", "amount: 400")
    (tmp_path / "p.yaml").write_text(text + TUNING)
    jobs: list[Job] = []

    def wait(self: BenchRun, job: Job, slot: dict[str, str]) -> str:
        jobs.append(job)
        if job[0] in self.protocol.objectives and rate_of(self.protocol, job[0]) > 0.05:
            return "the loss is not finite"
        self._file(job).write_text("{}")
        return ""

    def read(file: Path, protocol: Protocol) -> Cell:
        row, _, seed = file.stem.rpartition("-")
        kind = "objective" if row in protocol.objectives else "reference"
        score = -abs(math.log(rate_of(protocol, row) / 0.03)) if kind == "objective" else -9.0
        split = {"held_out": (0, len(protocol.held_out))}
        return Cell(row, kind, int(seed), metrics={METRIC: [score] * len(protocol.held_out)}, prompt_split=split)

    monkeypatch.setattr(BenchRun, "_wait", wait)
    monkeypatch.setattr(runner, "read_finished", read)
    return jobs


def rate_of(protocol: Protocol, row: str) -> float:
    """The learning rate that the row's overrides set; the recipe has 0.01."""
    settings = dict(text.split("=", 1) for text in protocol.objectives[row].overrides if text.startswith("trainer."))
    return float(settings.get("trainer.learning_rate", 0.01))


def tuned(*overrides: str, rows: list[str] | None = None) -> TuneRun:
    return TuneRun("p.yaml", list(overrides), rows=rows, jobs=1, say=lambda text: None)


def test_every_row_is_tuned_by_as_many_trials(ran: list[Job]) -> None:
    one = tuned()
    document = json.loads(one.run().read_text())
    rows = {row["row"]: row for row in document["rows"]}
    assert {name: len(row["trials"]) for name, row in rows.items()} == {"sft": 8, "astrolabe": 8}
    keys = {name: [text.partition("=")[0] for text in row["own"]] for name, row in rows.items()}
    assert keys["sft"] == ["trainer.learning_rate"]
    assert keys["astrolabe"] == ["trainer.learning_rate", "objective.kl.weight", "objective.group_size"]
    for row in rows.values():
        assert "trainer.learning_rate=0.03" in row["overrides"], "the recipe has 0.01"
        assert row["best"] in [trial["settings"] for trial in row["trials"]]
        failed = [trial for trial in row["trials"] if trial["error"]]
        assert all(t["score"] is None and float(t["settings"][0].partition("=")[2]) > 0.05 for t in failed)
    assert any(trial["error"] == "the loss is not finite" for trial in rows["sft"]["trials"]), "0.09: widened to there"
    assert (document["start"], document["metric"]) == (-9.0, METRIC)
    assert document["command"] == "vidalign bench tune p.yaml"
    assert tuning_table(document).row_count == 2


def test_trials_are_kept_and_more_of_them_go_on(ran: list[Job]) -> None:
    tuned(rows=["sft"]).run()
    first = list(ran)
    assert len(first) == 8 + 2, "start and truth are judged once"
    trials = [job for job in first if job[0].startswith("sft-")]
    del ran[:]
    tuned(rows=["sft"]).run()
    assert set(ran) <= set(trials) and len(ran) < 3, "only trials that failed are run again"
    del ran[:]
    text = Path("p.yaml").read_text()
    Path("p.yaml").write_text(text.replace("trials: 8", "trials: 10"))
    more = json.loads(tuned(rows=["sft"]).run().read_text())["rows"][0]["trials"]
    new = [job for job in ran if job not in trials]
    assert len(more) == 10 and len(new) == 2, "the first eight are those of before"


def test_a_row_tunes_on_from_a_winner_that_the_protocol_took_over(ran: list[Job]) -> None:
    """The same rate is one trial, whether the recipe or an override has it; the recipe's own stays its own."""
    tuned(rows=["sft"]).run()
    first = {job[0] for job in ran}
    text = Path("p.yaml").read_text()
    Path("p.yaml").write_text(text.replace("teacher.name=world]", "teacher.name=world, trainer.learning_rate=0.03]"))
    del ran[:]
    (row,) = json.loads(tuned(rows=["sft"]).run().read_text())["rows"]
    assert row["own"] == ["trainer.learning_rate=0.03"] and row["overrides"] == []
    kept = [trial for trial in row["trials"] if trial["score"] is not None]
    assert len(kept) > 3 and {job[0] for job in ran if job[0].startswith("sft-")} - first, "wider above, kept below"


def test_rows_of_an_earlier_result_are_kept(ran: list[Job]) -> None:
    first = json.loads(tuned(rows=["sft"]).run().read_text())
    second = json.loads(tuned(rows=["astrolabe"]).run().read_text())
    both = with_rows_of(first, second)
    assert both["rows"] == [*first["rows"], *second["rows"]]
    assert both["command"] == "vidalign bench tune p.yaml --rows sft and vidalign bench tune p.yaml --rows astrolabe"
    again = with_rows_of(both, second)
    assert again == both, "a row that is tuned again takes the place of its earlier trials"
    assert with_rows_of(first, first) == first
    other = first | {"budget": {"currency": "rollouts", "amount": 1.0}}
    with pytest.raises(UserError, match=r"trials under other conditions - budget - .*400"):
        with_rows_of(other, second)


def test_a_file_of_other_conditions_is_refused_before_any_trial(
    ran: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    first = json.loads(tuned(rows=["sft"]).run().read_text())
    del ran[:]
    Path("out.json").write_text(json.dumps(first | {"seeds": [7]}))
    with pytest.raises(SystemExit) as leaving:
        main(["bench", "tune", "p.yaml", "--rows", "astrolabe", "--out", "out.json"])
    assert leaving.value.code == 2 and "other conditions - seeds - [7], not [0]" in capsys.readouterr().err
    assert not ran


def test_a_stopped_tuning_says_how_to_go_on(ran: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: BenchRun) -> None:
        raise Interrupted("3 cells are not finished", fix="go on with `vidalign bench run`")

    monkeypatch.setattr(BenchRun, "run", stop)
    with pytest.raises(Interrupted, match="go on with `vidalign bench tune p.yaml --rows sft`"):
        tuned(rows=["sft"]).run()


def test_settings_are_chosen_on_training_prompts(ran: list[Job]) -> None:
    with pytest.raises(UserError, match="holds prompts that recipe.yaml does not train on.*tuning.prompts.source"):
        tuned("tuning.prompts.source=world:basic/unseen")
    one = tuned()
    trials = load_protocol(str(one.file))
    assert trials.trained_prompts and not set(trials.held_out) & set(one.protocol.all_prompts)
    assert trials.budget == one.protocol.budget and trials.evaluation.seeds == one.protocol.evaluation.seeds
    problems = ["tuning.prompts.source=rules:held_out"]
    with pytest.raises(UserError, match="'rules:held_out' holds prompts that rules/opd does not train on"):
        TuneRun("dopd_table", problems, rows=["opd"])


def test_what_is_tuned_does_not_change_the_hash(ran: list[Job]) -> None:
    plain = load_protocol("p.yaml")
    assert load_protocol("p.yaml", ["tuning.trials=20"]).hash == plain.hash
    assert load_protocol("p.yaml", ["~tuning"]).hash == plain.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("~tuning", "p-.* has no section tuning"),
        ("tuning.trials=5", "5 trials are fewer than the grid of 'astrolabe' has.*3 axes need 6"),
        ("tuning.metric=world_scorr/composite", "no metric 'world_scorr'.*did you mean 'world_scorer'"),
        ("tuning.grid={rate: {keys: [trainer.rate], factors: [1, 2]}}", "has no trainer.rate"),
    ],
)
def test_mistakes_before_any_work(change: str, message: str, ran: list[Job]) -> None:
    with pytest.raises(UserError, match=message):
        tuned(change)
    assert not ran


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tuning.grid={rate: {keys: [trainer.learning_rate], factors: [3, 1]}}", "factors must increase"),
        ("tuning.grid={rate: {keys: [trainer.learning_rate], factors: [2, 3]}}", "with 1 among them"),
        ("tuning.grid={rate: {keys: [], factors: [1, 3]}}", "keys must name a setting"),
        ("tuning.trials=0", "trials must be at least 1"),
        ("tuning.seeds=[]", "seeds and grid must not be empty"),
        ("tuning.trails=9", "did you mean 'trials'"),
    ],
)
def test_the_section_is_checked(change: str, message: str, ran: list[Job]) -> None:
    with pytest.raises(RecipeError, match=message):
        tuned(change)


def test_rows_and_values_that_are_not_there(ran: list[Job]) -> None:
    with pytest.raises(RecipeError, match="no row 'sfd' in p - --rows - did you mean 'sft'"):
        tuned(rows=["sfd"])
    with pytest.raises(UserError, match="has 'world_scorer/composit'.*did you mean 'world_scorer/composite'"):
        tuned("tuning.metric=world_scorer/composit").run()


@pytest.mark.parametrize("name", shipped_protocols())
def test_shipped_protocols_can_be_tuned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    protocol = load_protocol(name)
    made = {row for row, config in protocol.objectives.items() if config.before or config.prepare}
    rows = [row for row in protocol.objectives if row not in made][-1:]
    one = TuneRun(name, rows=rows, say=lambda text: None)
    assert all(row.axes[0].key == "trainer.learning_rate" for row in one.tuned)
    assert one.metric in ("world_auditor/composite", "exact_match/all")
