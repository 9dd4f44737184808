"""Recipes and clip stores that are damaged or meant to harm end in one message with its place."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from vidalign.errors import DataError, Problem
from vidalign.recipe.source_map import parse_override, read_yaml
from vidalign.teachers.index import index_clips

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
HOSTILE = {
    "cycle": ("seed: 0\na: &a [*a]\n", "r.yaml:2"),
    "billion laughs": (BOMB, "r.yaml:2"),
    "depth": ("a:\n  " + "[" * 100_000, "r.yaml:2"),
    "NUL": ("a: 1\nb: \0\n", "r.yaml"),
    "escaped surrogate": ('seed: 0\na: "\\ud800"\n', "r.yaml:2"),
    "date": ("seed: 0\na: 2026-02-40\n", "r.yaml"),
    "environment": ("seed: 0\na: ${oc.env:HOME}\n", "r.yaml:2"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_a_problem_with_its_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, where = HOSTILE[name]
    Path("r.yaml").write_text(text, encoding="utf-8")
    problems: list[Problem] = []
    began = time.monotonic()
    read_yaml(Path("r.yaml"), problems)
    assert time.monotonic() - began < 1
    assert [problem.where for problem in problems] == [where]


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "[" * 500, "&a [*a]", "\0", "\ud800"])
def test_hostile_overrides(value: str) -> None:
    problems: list[Problem] = []
    parse_override(f"a={value}", 1, problems)
    assert [problem.where for problem in problems] == ["override 1"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("fifo.yaml", "zero.yaml"):
        problems: list[Problem] = []
        read_yaml(tmp_path / name, problems)
        assert [problem.why for problem in problems] == ["it is not a regular file"]


@pytest.mark.parametrize("name", ["../x.gif", "a/../../x.gif", "/x.gif"])
def test_a_store_does_not_leave_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "prompt": "a"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata.jsonl:1.* leads out of the folder"):
        index_clips(tmp_path)
