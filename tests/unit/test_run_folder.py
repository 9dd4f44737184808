"""Names of new run folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vidalign.run_folder import new_run_dir


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vidalign.run_folder.time.strftime", lambda form: "20260102-030405")
    recipe: Any = SimpleNamespace(name="world/astrolabe", engine=SimpleNamespace(name="plain"))
    folders = [new_run_dir(recipe) for _ in range(3)]
    assert [str(folder) for folder in folders] == [
        "runs/astrolabe-20260102-030405",
        "runs/astrolabe-20260102-030405-2",
        "runs/astrolabe-20260102-030405-3",
    ]
    assert all(folder.is_dir() for folder in folders)
