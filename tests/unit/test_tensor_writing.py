"""Safetensors files have the permissions of other new files, and one place writes them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vidalign
from vidalign.tensor_writing import save_tensors


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_those_of_the_process(tmp_path: Path, mask: int, expected: int) -> None:
    path = tmp_path / "new.safetensors"
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.ones(2)}, path, {"made": "here"})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == expected
    assert load_file(path)["a"].tolist() == [1.0, 1.0]


def test_a_file_that_is_written_again_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    path.touch(0o640)
    path.chmod(0o640)
    save_tensors({"a": torch.zeros(1)}, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_nothing_else_writes_them() -> None:
    root = Path(vidalign.__file__).parent
    calls = [file.name for file in root.rglob("*.py") if "save_file(" in file.read_text(encoding="utf-8")]
    assert calls == ["tensor_writing.py"]
