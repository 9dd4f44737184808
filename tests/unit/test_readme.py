"""The README: its code runs, its figures are those of the result files and of the recipes, its pictures are small."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from test_docs import blocks

import vidalign
from vidalign import registry
from vidalign.bench.comparison import compare
from vidalign.bench.results import Results, read_results
from vidalign.recipe import shipped_recipes

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
ROWS = {
    "world/astrolabe": ("all_objectives", "astrolabe"),
    "world/astrolabe_selective": ("all_objectives", "astrolabe_selective"),
    "world/ar_copo": ("all_objectives", "ar_copo"),
    "world/ar_copo_semi": ("all_objectives", "ar_copo_semi"),
    "world/afd": ("all_objectives", "afd"),
    "world/student_dmd": ("all_objectives", "dmd"),
    "world/dopd": ("all_objectives", "dopd"),
    "world/sft": ("all_objectives", "sft"),
    "world/astrolabe_long": ("astrolabe_long", "long"),
    "rules/dopd": ("dopd_table", "dopd"),
    "rules/opd": ("dopd_table", "opd"),
}
"""Result file and row of the recipe that a line of the table names first."""


@pytest.fixture(scope="module")
def results() -> dict[str, Results]:
    names = {file for file, _ in ROWS.values()} | {"quickstart"}
    return {name: read_results(ROOT / "benchmarks" / "results" / f"{name}.json") for name in names}


def gain(results: Results, row: str) -> str:
    metrics = ("world_auditor/composite", "exact_match/all")
    found = next(d for d in compare(results, "base", row) if d.metric in metrics)
    return f"{found.difference:+.3f} ({found.interval[0]:+.3f} .. {found.interval[1]:+.3f})"


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    part = TEXT.partition(heading)[2]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    width = lines[0].count("|")
    own = []
    for line in lines:
        if line.count("|") != width:
            break
        own.append([cell.strip() for cell in line.strip("|").split("|")])
    return own[2:]


def test_the_first_two_commands_and_the_length() -> None:
    first = blocks(README, "")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make quickstart", "make test"]
    assert len(TEXT.splitlines()) < 250


def test_gains_and_costs_are_those_of_the_result_files(results: dict[str, Results]) -> None:
    seen = []
    for _, recipes, _, _, minutes, shown in table("## Which recipe do I need?"):
        recipe = re.findall(r"`([^`]+)`", recipes)[0]
        file, row = ROWS[recipe]
        result = results[file]
        cells = result.of_row(row)
        assert shown.rstrip(" †") == gain(result, row), recipe
        assert float(minutes) == round(sum(c.spent.seconds for c in cells) / len(cells) / 60, 1), recipe
        assert ("†" in shown) == bool(result.outdated_since), f"{recipe} is marked where it is outdated"
        assert not result.outdated_since or result.outdated_since in TEXT
        seen.append(recipe)
    assert seen == list(ROWS)


@pytest.mark.parametrize(
    ("page", "file", "row"),
    [
        ("afd", "all_objectives", "afd"),
        ("ar_copo", "all_objectives", "ar_copo"),
        ("astrolabe", "quickstart", "astrolabe"),
        ("dopd", "dopd_table", "dopd"),
    ],
)
def test_the_page_of_a_method_has_our_figure(page: str, file: str, row: str, results: dict[str, Results]) -> None:
    text, result = (ROOT / "docs" / "methods" / f"{page}.md").read_text(encoding="utf-8"), results[file]
    outdated = f", outdated since commit {result.outdated_since}" if result.outdated_since else ""
    assert f"{gain(result, row)}{outdated}, by `vidalign bench run" in text


def test_the_figures_of_the_quickstart_are_current(results: dict[str, Results]) -> None:
    result = results["quickstart"]
    assert not result.outdated_since and gain(result, "astrolabe") in TEXT
    found, whole = (compare(result, "base", row) for row in ("astrolabe", "ground_truth"))
    mine, goal = (next(d.difference for d in one if d.metric == "world_auditor/composite") for one in (found, whole))
    assert f"{mine / goal:.0%}".replace("%", " %") in TEXT
    diversity = next(d for d in found if d.metric == "diversity/seeds")
    low, high = diversity.interval
    assert f"by {-diversity.difference:.3f}\n({-high:.3f} to {-low:.3f})" in TEXT


def test_every_named_recipe_is_shipped() -> None:
    named = [name for row in table("## Which recipe do I need?") for name in re.findall(r"`(\w+/\w+)`", row[1])]
    assert len(named) > 15 and [name for name in named if name not in shipped_recipes()] == []


def test_hardware_is_what_the_recipes_say() -> None:
    rows = table("**Hardware**")
    planned = [(re.findall(r"`([^`]+)`", row[1])[0], row[2].partition(",")[0]) for row in rows if "GB" in row[2]]
    assert len(planned) >= 4
    for recipe, size in planned:
        assert f"counts {size}" in shipped_recipes()[recipe].read_text(encoding="utf-8"), recipe


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, with the shipped student."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    exec(compile(blocks(README, "python")[0], str(README), "exec"), values)
    assert values["before"].shape == (1, 12, 3, 32, 32)
    assert {row.metric for row in values["rows"]} >= {"brightness", "composite"}
    assert vidalign.load_student("bright.safetensors").sample(["a large red circle falls"], frames=12).shape[1] == 12


def test_pictures_are_small_and_drawn_by_their_scripts(results: dict[str, Results]) -> None:
    links = re.findall(r"!\[[^]]*\]\((docs/[^)]+)\)", TEXT)
    assert links == ["docs/images/play.gif", "docs/images/before_after.gif", "docs/images/forest.svg"]
    assert sum((ROOT / link).stat().st_size for link in links[:2]) < 1_500_000
    assert all((ROOT / link).read_bytes()[:6] == b"GIF89a" for link in links[:2])
    script = runpy.run_path(str(ROOT / "docs" / "make_forest.py"))
    assert script["chart"](results["all_objectives"]) == (ROOT / links[2]).read_text(encoding="utf-8")
