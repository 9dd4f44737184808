"""Files of weights, asked by their header alone: which kind of student they are of, and how often they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vidalign.errors import CheckpointError
from vidalign.recipe import load_recipe
from vidalign.students import weights


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("world/student", "video"),
        ("world/teacher", "video"),
        ("tokens/student", "language"),
        ("Qwen/Qwen3", "language"),
    ],
)
def test_the_kind_of_weights_is_in_their_header(path: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it is asked for half a minute
    assert weights.kind_of(path) == kind


def test_a_folder_is_a_language_model(tmp_path: Path) -> None:
    assert weights.kind_of(tmp_path) == "language"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no student spec in the file"),
        ({"spec": "[]"}, "the student's spec cannot be read"),
        ({"spec": '{"depth": 3}'}, "no known kind of student .* depth"),
    ],
)
def test_weights_of_no_kind_are_refused(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(CheckpointError, match=message):
        weights.kind_of(tmp_path / "x.safetensors")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="unreadable weights"):
        weights.kind_of(tmp_path / "x.safetensors")


def test_a_recipe_opens_a_file_of_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    plain = weights.read_header

    def count(file: Any, *arguments: Any) -> Any:
        opened.append(str(file))
        return plain(file, *arguments)

    monkeypatch.setattr(weights, "read_header", count)
    weights._header.cache_clear()
    load_recipe("world/dopd")
    assert opened and len(opened) == len(set(opened))


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for size in (1, 2):
        save_file({"x": torch.zeros(size)}, file)
        assert weights.header(file).shapes == {"x": (size,)}
