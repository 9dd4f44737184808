"""Result files of somebody else, with digests that agree: nothing leaves the folder, mistakes are one message."""

from __future__ import annotations

import hashlib
import html
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_helpers import vidalign

from vidalign.bench.cell import STEPS, timed_steps
from vidalign.bench.results import Results, read_results, write_results
from vidalign.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from bench_helpers import make_cell, make_results


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    return tmp_path


def results(**pinned: Any) -> Results:
    cells = [make_cell("base", 0, [0.1, 0.2], "reference"), make_cell("mine", 0, [0.3, 0.4])]
    return make_results(cells, **pinned)


def named(name: str) -> Results:
    found = results()
    return replace(found, protocol=replace(found.protocol, name=name))


def with_row(row: str) -> Results:
    found = results()
    found.cells[1].row = row
    return replace(found, cells=[cell.sealed() for cell in found.cells])


OUT = ("../../../x", "/tmp/x", "..", "", "a/b", "a\\b", "n" * 300, "a\0b")


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("make", [named, with_row])
def test_names_stay_in_the_folder(name: str, make: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results("foreign.json", make(name))
    before = sorted(folder.rglob("*"))
    for command in (("report", "foreign.json"), ("compare", "foreign.json:base", "mine")):
        assert vidalign("bench", *command) == 2
        told = capsys.readouterr().err
        assert "this is not a benchmark result - foreign.json" in told and "cannot be that of a file" in told
        assert told.count("error:") == 1 and "Traceback" not in told
    assert sorted(folder.rglob("*")) == before


def test_a_good_one_is_reported_in_its_folder(folder: Path) -> None:
    write_results("foreign.json", results())
    assert read_results("foreign.json").protocol.name
    before = set(folder.rglob("*"))
    assert vidalign("bench", "report", "foreign.json") == 0
    assert {path.relative_to(folder).parts[:4] for path in set(folder.rglob("*")) - before} <= {
        ("a", "b", "runs"),
        ("a", "b", "runs", "bench"),
    }


def test_clips_of_another_folder_are_not_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = results()
    found.cells[1].clips = "../../secret.npz"
    write_results("foreign.json", replace(found, cells=[cell.sealed() for cell in found.cells]))
    (folder / "secret.npz").write_bytes(b"secret")
    assert vidalign("bench", "report", "foreign.json", "--out", "page.html") == 0
    page = html.unescape(Path("page.html").read_text(encoding="utf-8"))
    assert "leads out of the folder" in page and not caplog.text, "said once, on the page"


CHANGES = {
    "list": lambda d: [d],
    "protocol as text": lambda d: {**d, "protocol": "quickstart"},
    "name as a number": lambda d: {**d, "protocol": {**d["protocol"], "name": 3}},
    "cells as text": lambda d: {**d, "cells": "x"},
    "prompts as text": lambda d: {**d, "prompts": "x"},
    "unknown entry": lambda d: {**d, "odd": 1},
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_forms(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results("foreign.json", results())
    document = json.loads(Path("foreign.json").read_text())
    Path("foreign.json").write_text(json.dumps(CHANGES[name](document)))
    for command in (("report", "foreign.json"), ("compare", "foreign.json:base", "mine")):
        assert vidalign("bench", *command) == 2
        told = capsys.readouterr().err
        assert "foreign.json" in told and told.count("error:") == 1 and "Traceback" not in told


@pytest.mark.parametrize("text", ["a: &a [1]\nb: *a\n", "x: [", "- 1\n", "[" * 100, "a: ${oc.env:HOME}\n"])
def test_protocols_that_cannot_be_read_are_another_protocol(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results()
    stamp = replace(found.protocol, text=text, hash=hashlib.sha256(text.encode()).hexdigest()[:12])
    write_results("own.json", found)
    write_results("foreign.json", replace(found, protocol=stamp))
    assert vidalign("bench", "compare", "own.json:base", "foreign.json:mine") == 2
    told = capsys.readouterr().err
    assert "it cannot be read" in told and told.count("error:") == 1 and "Traceback" not in told


@pytest.mark.parametrize("content", [b"", b"many", bytes(range(256)), b"[" * 100_000])
def test_a_damaged_number_of_steps(content: bytes, folder: Path) -> None:
    (folder / STEPS).write_bytes(content)
    protocol: Any = SimpleNamespace(budget=SimpleNamespace(amount=1.0))
    with pytest.raises(DataError, match="the number of steps cannot be read.*remove the file"):
        timed_steps(protocol, "mine", 0, folder)
