"""Clips as they travel in the page: the frames of a clip as one picture (sheet), of which one frame is seen."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidalign.errors import UserError
from vidalign.report.model import ShownPrompt
from vidalign.tracking.clips import shrink, sprite

CLIP_BYTES = 3_000_000  # all sprite sheets together, before base64
FRAME_SIDES = (256, 192, 128, 96, 64)  # larger frames are shrunk until the clips fit CLIP_BYTES


def fit(prompts: Sequence[ShownPrompt]) -> list[list[dict[str, Any]]]:
    """The sprite sheets of every prompt's panes, frames shrunk as far as CLIP_BYTES asks.

    Where even the smallest frames take too much, the last prompts are left out. Raises `UserError` when the first
    prompt alone does not fit.
    """
    sheets: list[list[dict[str, Any]]] = []
    for side in FRAME_SIDES:
        sheets = [[_sheet(shrink(pane.frames, side)) for pane in shown.panes] for shown in prompts]
        if _size(sheets) <= CLIP_BYTES:
            return sheets
    while _size(sheets) > CLIP_BYTES:
        sheets.pop()
    if not sheets and prompts:
        raise UserError(
            "the clips do not fit into the report",
            why=f"the {len(prompts[0].panes)} clips of one prompt exceed {CLIP_BYTES / 1e6:.1f} MB",
            fix="give fewer rows or shorter clips to the report",
        )
    return sheets


def _size(sheets: list[list[dict[str, Any]]]) -> int:
    return sum(len(sheet["src"]) for panes in sheets for sheet in panes) * 3 // 4


def _sheet(frames: np.ndarray) -> dict[str, Any]:
    assert frames.ndim == 4 and frames.dtype == np.uint8, "a clip is uint8 [F, H, W, 3]"
    kind = "png" if max(frames.shape[1:3]) <= 64 else "jpeg"  # small frames stay exact, large ones stay small
    buffer = io.BytesIO()
    sprite(frames).save(buffer, kind.upper(), optimize=True, quality=85)
    columns = math.ceil(math.sqrt(len(frames)))
    return {
        "src": f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "frames": len(frames),
        "height": frames.shape[1],
        "width": frames.shape[2],
        "columns": columns,
        "motion": f"play-{len(frames)}-{columns}",
    }


def stops(sheet: dict[str, Any]) -> list[tuple[float, float, float]]:
    """When (percent of the clip) and where (percent of the sheet, to the left and up) each frame of a sheet is."""
    frames, columns = sheet["frames"], sheet["columns"]
    rows = math.ceil(frames / columns)
    return [
        (round(100 * n / frames, 3), round(-100 * (n % columns) / columns, 4), round(-100 * (n // columns) / rows, 4))
        for n in range(frames)
    ]
