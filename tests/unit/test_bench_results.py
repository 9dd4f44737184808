"""Result files and what they say: digests, paired differences, claims."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
import torch
from bench_helpers import make_cell, make_results

from vidalign.bench.comparison import compare, summaries
from vidalign.bench.differences import first_difference
from vidalign.bench.results import Cell, read_results, write_results
from vidalign.bench.watched import Watched, watched
from vidalign.errors import DataError, UserError


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- comparison ---


def test_differences_are_paired_by_prompt_and_seed() -> None:
    base = 10 * numbers(30)
    cells = [make_cell("base", 0, base.tolist(), "reference")]
    for seed in (0, 1, 2):
        noise = base + 5 * numbers(30, seed=seed + 1)
        cells.append(make_cell("a", seed, noise.tolist()))
        cells.append(make_cell("b", seed, (noise + 0.3 + 0.01 * numbers(30, seed=9)).tolist()))
    cells.append(make_cell("b", 7, [1000.0] * 30))  # a seed that a does not have
    results = make_results(cells)
    (found,) = compare(results, "a", "b")
    assert found.difference == pytest.approx(0.3, abs=0.01) and found.verdict == "better"
    assert compare(results, "b", "a")[0].verdict == "worse"
    (found,) = compare(results, "base", "a")
    assert abs(found.difference) < 5 and found.verdict == "unclear"


def test_a_win_needs_an_interval_without_zero() -> None:
    zero = make_cell("a", 0, [0.0] * 8)
    cells = [zero, make_cell("b", 0, [1.0] * 7 + [-6.0]), make_cell("c", 0, [0.5, 0.6] * 4)]
    (found,) = compare(make_results(cells), "a", "b")
    assert found.difference == pytest.approx(0.125) and found.verdict == "unclear" and found.interval[0] < 0
    assert compare(make_results(cells), "a", "c")[0].verdict == "better"


def test_a_few_prompts_win_nothing() -> None:
    cells = [make_cell("a", 0, [0.0] * 7), make_cell("b", 0, [0.5] * 7)]
    (found,) = compare(make_results(cells), "a", "b")
    assert found.verdict == "too few prompts" and found.prompts == 7


def test_summaries_leave_failures_out() -> None:
    failed = Cell(row="b", kind="objective", seed=0, error="out of memory").sealed()
    results = make_results([make_cell("a", 0, [1.0, math.nan]), make_cell("a", 1, [3.0, 5.0]), failed])
    (found,) = summaries(results)
    assert (found.row, found.metric, found.mean) == ("a", "m/x", 3.0)
    with pytest.raises(DataError, match="'b' has no values.*out of memory"):
        compare(results, "a", "b")
    with pytest.raises(UserError, match="no row 'astrolab'.*did you mean 'astrolabe'"):
        compare(make_results([make_cell("astrolabe", 0, [1.0])]), "astrolabe", "astrolab")
    with pytest.raises(UserError, match="no prompts 'held_in'.*did you mean 'held_out'"):
        compare(make_results([make_cell("a", 0, [1.0])]), "a", "a", split="held_in")


def test_other_protocols_are_refused_by_their_first_difference() -> None:
    ours = make_results([make_cell("a", 0, [1.0, 2.0])], budget={"amount": 10.0, "currency": "forwards"})
    theirs = make_results([make_cell("a", 0, [1.0, 2.0])], budget={"amount": 20.0, "currency": "calls"})
    with pytest.raises(UserError, match=r"first difference is budget.amount: 10.0, not 20.0"):
        compare(ours, "a", "a", theirs)
    assert compare(ours, "a", "a", ours)[0].difference == 0.0
    assert first_difference("{a: 1}", "{a: 1, b: 2}") == "b: nothing, not 2"
    assert first_difference("{a: 1}", "{a: 1}") == ""


# --- files ---


def test_a_file_holds_everything(tmp_path: Path) -> None:
    cell = make_cell("a", 1, [0.1, math.nan])
    cell.curve, cell.drift, cell.warnings = [{"step": 3, "m/x": 0.5}], {"d/v": [1.0, 0.5]}, ["freezing"]
    results = make_results([cell.sealed()])
    read = read_results(write_results(tmp_path / "p.json", results))
    assert read.protocol == results.protocol and read.prompts == results.prompts
    (found,) = read.cells
    assert found.metrics["m/x"][0] == 0.1 and math.isnan(found.metrics["m/x"][1])
    assert (found.digest, found.curve, found.drift, found.prompt_split) == (
        cell.digest,
        cell.curve,
        cell.drift,
        {"held_out": (0, 2)},
    )


@pytest.mark.parametrize("change", ["metrics", "spent", "seed", "protocol", "health", "prompts"])
def test_a_number_changed_by_hand_is_found(change: str, tmp_path: Path) -> None:
    path = write_results(tmp_path / "p.json", make_results([make_cell("a", 1, [0.1, 0.2])]))
    document = json.loads(path.read_text())
    cell = document["cells"][0]
    if change == "metrics":
        cell["metrics"]["m/x"][0] = 0.9
    elif change == "spent":
        cell["spent"]["forwards"] = 1.0
    elif change == "seed":
        cell["seed"] = 2
    elif change == "health":
        document["health"] = {"hacking_probe": {}}
    elif change == "prompts":
        document["prompts"][0] = "another"
    else:
        document["protocol"]["text"] += "extra: 1\n"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="('a, seed [12]'|the protocol|the result) was changed after it was measured"):
        read_results(path)


def test_files_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no result file"):
        read_results(tmp_path / "p.json")
    for text in ("{", "{}", "[]"):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(DataError, match="cannot read the result file|is not a benchmark result"):
            read_results(tmp_path / "p.json")


def test_a_full_disk_is_named_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_results([make_cell("a", 0, [1.0])])
    path = write_results(tmp_path / "p.json", results)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DataError, match="No space left on device.*free some space"):
        write_results(path, make_results([make_cell("a", 0, [2.0])]))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_which_scores_stand_for_a_benchmark() -> None:
    """A composite, or the first value, of what nothing is trained on; a plugin that is gone counts as such."""
    both = watched(["world_scorer/a", "world_scorer/composite", "world_auditor/colour", "world_auditor/composite"])
    assert (both.held_out, both.trained) == ("world_auditor/composite", "world_scorer/composite")
    assert watched(["exact_match/all", "exact_match/chain"]) == Watched("exact_match/all", "")
    assert watched(["gone/x", "gone/y"]) == Watched("gone/x", "") and watched([]) == Watched()
