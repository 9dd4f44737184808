"""A folder with the weights of a student and of a teacher, tiny and random."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidalign.testing.recipes import save_video_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    save_video_network(folder / "student.safetensors", 1)
    save_video_network(folder / "teacher.safetensors", 2)
    return folder
