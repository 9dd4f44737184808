"""The picture that a video begins with, and scores and folders that are not what they seem."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vidalign.evaluation.evaluator import _by_name
from vidalign.students.hub import DESCRIPTION, report_idle_adapter
from vidalign.students.video.samples import _picture
from vidalign.workflows.sample import report_rounding

SPEC: Any = SimpleNamespace(width=8, height=8)


def test_a_picture_is_what_a_viewer_shows(tmp_path: Path) -> None:
    """Turned as its metadata say; transparency on white."""
    stored = Image.new("RGB", (64, 64), "blue")
    stored.paste("red", (32, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    stored.save(tmp_path / "turned.png", exif=exif)
    red, _, blue = _picture(SPEC, tmp_path / "turned.png")[0, 0]
    assert blue[0].min() > 0.9 and red[0].max() < 0.1, "blue above"
    assert red[-1].min() > 0.9 and blue[-1].max() < 0.1, "red below"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert _picture(SPEC, tmp_path / "clear.png").min() == 1.0


def test_scores_that_are_not_finite_are_not_known() -> None:
    judged = [(2, {("judge", "all"): torch.tensor([-math.inf, 0.5])}), (1, {})]
    ((first, second),) = _by_name(judged).values()
    assert first[0].isnan() and first[1] == 0.5 and second.isnan().all() and len(second) == 1


def test_rounding_of_what_was_trained_is_reported(recwarn: pytest.WarningsRecorder) -> None:
    report_rounding(torch.float32)
    report_rounding(None)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="rounded to bfloat16, .* export --dtype bfloat16"):
        report_rounding(torch.bfloat16)


def test_an_adapter_that_is_not_used_is_reported(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / DESCRIPTION).write_text("{}")
    report_idle_adapter(tmp_path)
    assert not recwarn.list
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="the adapter in .* is not used: student.adapter.start goes on from it"):
        report_idle_adapter(tmp_path)
