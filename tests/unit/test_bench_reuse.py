"""Cells of another protocol are taken over when, and only when, conditions, recipe hash and seed are the same."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bench_helpers import PROTOCOL, make_cell, make_folder

from vidalign.bench.cell import cell_recipe
from vidalign.bench.protocol import Protocol, load_protocol
from vidalign.bench.results import ProtocolStamp, Results, sealed_health, write_json, write_results
from vidalign.bench.reuse import Finished
from vidalign.bench.runner import BenchRun, prepare, read_finished
from vidalign.errors import UserError


@pytest.fixture
def protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Protocol, Protocol]:
    """The same conditions and recipe under two names, one row called `astrolabe`, the other `again`."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    (tmp_path / "first.yaml").write_text(PROTOCOL)
    (tmp_path / "second.yaml").write_text(PROTOCOL.replace("  astrolabe: {recipe", "  again: {recipe"))
    first, second = load_protocol("first.yaml"), load_protocol("second.yaml")
    assert first.hash == second.hash and first.folder != second.folder
    return first, second


def finish(protocol: Protocol, row: str, seed: int, value: float, recipe_hash: str | None = None) -> None:
    kind = "objective" if row in protocol.objectives else "reference"
    cell = replace(make_cell(row, seed, [value] * len(protocol.all_prompts), kind), recipe_hash=recipe_hash)
    protocol.folder.mkdir(parents=True, exist_ok=True)
    document = {"protocol": protocol.conditions, "cell": asdict(cell.sealed())}
    write_json(protocol.folder / f"{row}-{seed}.json", document)


def test_the_same_measurement_is_taken_over_under_its_new_name(protocols: tuple[Protocol, Protocol]) -> None:
    first, second = protocols
    finish(first, "astrolabe", 1, 0.25, cell_recipe(first, "astrolabe", 1).hash)
    finish(first, "base", 0, 0.125)
    found = Finished(second)
    assert found.take("again", 1) and found.take("base", 0)
    assert not found.take("again", 0) and not found.take("ground_truth", 0) and not found.take("health", 0)
    cell = read_finished(second.folder / "again-1.json", second)
    assert (cell.row, cell.seed) == ("again", 1)
    assert all(set(values) == {0.25} for values in cell.metrics.values())


def test_cells_stay_when_the_protocol_asks_for_further_seeds(protocols: tuple[Protocol, Protocol]) -> None:
    """In its own folder, beside it, and in the result file that it is to write."""
    first, second = protocols
    finish(first, "astrolabe", 1, 0.25, cell_recipe(first, "astrolabe", 1).hash)
    prepare(first)
    more = [load_protocol(one.name + ".yaml", ["seeds=[0,1,2,3]"]) for one in (first, second)]
    assert {one.hash for one in more}.isdisjoint({first.hash}) and {one.conditions for one in more} == {
        first.conditions
    }
    for one in more:
        one.name = one.name.partition("-")[0]  # as if the file said so
        prepare(one)
    assert (first.folder / "protocol.yaml").read_text() == more[0].text
    assert read_finished(first.folder / "astrolabe-1.json", more[0]).seed == 1
    assert Finished(more[1]).take("again", 1)
    write_results("known.json", results_of(first, [0, 1]))
    assert Finished(more[0], [Path("known.json")]).seeds == [0, 1]


def test_another_recipe_or_protocol_is_not(protocols: tuple[Protocol, Protocol], tmp_path: Path) -> None:
    first, second = protocols
    finish(first, "astrolabe", 1, 0.25, "another")
    (tmp_path / "third.yaml").write_text(PROTOCOL)
    third = load_protocol("third.yaml", ["budget.amount=999999"])
    finish(third, "astrolabe", 1, 0.5, cell_recipe(second, "again", 1).hash)
    assert not Finished(second).take("again", 1)


def test_a_cell_that_was_changed_by_hand_is_not(protocols: tuple[Protocol, Protocol]) -> None:
    first, second = protocols
    finish(first, "astrolabe", 1, 0.25, cell_recipe(first, "astrolabe", 1).hash)
    file = first.folder / "astrolabe-1.json"
    file.write_text(file.read_text().replace("0.25", "0.75"))
    assert not Finished(second).take("again", 1)


def test_a_bench_goes_on_from_the_result_that_it_is_to_write(protocols: tuple[Protocol, Protocol]) -> None:
    first, _ = protocols
    write_results("known.json", results_of(first, [0]))
    said: list[str] = []
    bench = BenchRun("first.yaml", seeds=[0], known=[Path("known.json")], say=said.append)
    bench.run()
    assert bench.jobs_left() == [] and not bench.errors
    assert sum(text.endswith("taken over") for text in said) == len(said) - 1


def results_of(protocol: Protocol, seeds: list[int]) -> Results:
    values = [0.5] * len(protocol.all_prompts)
    cells = [make_cell(row, 0, values, "reference") for row in ("base", "ground_truth")]
    for seed in seeds:
        cells.append(replace(make_cell("astrolabe", seed, values), recipe_hash=_hash(protocol, seed)))
    stamp = ProtocolStamp(protocol.name, protocol.hash, protocol.text)
    return Results(stamp, "w", "", {}, protocol.all_prompts, [c.sealed() for c in cells], {"perturbations": {}})


def _hash(protocol: Protocol, seed: int) -> str:
    return cell_recipe(protocol, "astrolabe", seed).hash


def test_a_result_that_is_written_anew_keeps_its_other_cells(protocols: tuple[Protocol, Protocol]) -> None:
    first, _ = protocols
    write_results("known.json", results_of(first, [0, 1, 7]))
    found = BenchRun("first.yaml", seeds=[0, 0], known=[Path("known.json")], say=lambda text: None).run()
    assert [cell.seed for cell in found.of_row("astrolabe")] == [0, 1, 7]
    again = BenchRun("first.yaml", seeds=[0], say=lambda text: None).run()  # by then they lie in the folder
    assert [cell.seed for cell in again.of_row("astrolabe")] == [0, 1, 7]


def test_a_result_of_another_protocol_is_not_overwritten(protocols: tuple[Protocol, Protocol]) -> None:
    first, _ = protocols
    write_results("known.json", results_of(load_protocol("first.yaml", ["budget.amount=999999"]), [0]))
    with pytest.raises(UserError, match=r"known.json holds results of another protocol.*amount"):
        BenchRun("first.yaml", known=[Path("known.json")]).run()


def test_an_examination_that_was_changed_is_not_taken_over(protocols: tuple[Protocol, Protocol]) -> None:
    first, second = protocols
    first.folder.mkdir(parents=True)
    examined = {"protocol": first.conditions, "health": sealed_health({"perturbations": {"base": 0.25}})}
    write_json(first.folder / "health.json", examined)
    assert Finished(second).take("health", 0)
    examined["health"]["perturbations"]["base"] = 0.5
    write_json(first.folder / "health.json", examined)
    assert not Finished(second).take("health", 0)
