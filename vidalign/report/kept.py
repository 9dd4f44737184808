"""What a page shows of a student's outputs as a file of the run, so that the page can be made again:
RUN/evaluation-clips.json, of a language student RUN/evaluation-responses.json.

Frames are kept as the page shows them: sheets of frames, exact where they are small, else shrunk JPEGs.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vidalign.errors import DataError
from vidalign.reading import check_object, read_json, regular
from vidalign.report import sprites
from vidalign.report.model import NAN, Answer, Pane, ShownAnswers, ShownPrompt

NUMBER = (int, float)


def write_clips(path: Path, prompts: Sequence[ShownPrompt], fps: float) -> None:
    """Write the prompts that fit, in their order; see `sprites.fit`. Raises `OSError`."""
    kept = [_prompt(shown, sheets) for shown, sheets in zip(prompts, sprites.fit(prompts), strict=False)]
    regular(path).write_text(json.dumps({"fps": fps, "prompts": kept}) + "\n", encoding="utf-8")


def read_clips(path: Path) -> tuple[list[ShownPrompt], float]:
    """The prompts and the frames a second; raises `DataError` for a file that cannot be read."""
    try:
        document = check_object(read_json(path), {"fps": NUMBER, "prompts": list})
        return [_shown(prompt) for prompt in document["prompts"]], float(document["fps"])
    except (OSError, ValueError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        raise _unreadable("clips", path, error) from error


def write_answers(path: Path, shown: Sequence[ShownAnswers]) -> None:
    """Write the answers in their order. Raises `OSError`."""
    kept = [
        {
            "prompt": one.prompt,
            **_known("change", one.change),
            "answers": [{"row": a.row, "text": a.text, **_known("score", a.score)} for a in one.answers],
        }
        for one in shown
    ]
    regular(path).write_text(json.dumps({"prompts": kept}, ensure_ascii=False) + "\n", encoding="utf-8")


def read_answers(path: Path) -> list[ShownAnswers]:
    """The answers in their order; raises `DataError` for a file that cannot be read."""
    try:
        return [_shown_answers(one) for one in check_object(read_json(path), {"prompts": list})["prompts"]]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable("responses", path, error) from error


def _shown_answers(value: Any) -> ShownAnswers:
    check_object(value, {"prompt": str, "answers": list})
    answers = [check_object(one, {"row": str, "text": str}) for one in value["answers"]]
    return ShownAnswers(
        value["prompt"],
        [Answer(one["row"], one["text"], float(one.get("score", NAN))) for one in answers],
        float(value.get("change", NAN)),
    )


def _known(name: str, value: float) -> dict[str, float]:
    """The entry, left out where it is no number."""
    return {name: value} if math.isfinite(value) else {}


def _unreadable(what: str, path: Path, error: Exception) -> DataError:
    return DataError(
        f"the {what} of the run cannot be read",
        where=str(path),
        why=str(error),
        fix="delete it, or write it again with `vidalign evaluate --run RUN`",
    )


def _prompt(shown: ShownPrompt, sheets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    panes = [
        {
            "row": pane.row,
            "scores": {name: value for name, value in pane.scores.items() if math.isfinite(value)},
            **{name: sheet[name] for name in ("frames", "height", "width", "columns", "src")},
        }
        for pane, sheet in zip(shown.panes, sheets, strict=True)
    ]
    return {"prompt": shown.prompt, "label": shown.label, **_known("change", shown.change), "panes": panes}


def _shown(value: Any) -> ShownPrompt:
    check_object(value, {"prompt": str, "label": str, "panes": list})
    return ShownPrompt(
        value["prompt"], [_pane(pane) for pane in value["panes"]], value["label"], float(value.get("change", NAN))
    )


def _pane(value: Any) -> Pane:
    sizes = ("frames", "height", "width", "columns")
    check_object(value, {"row": str, "scores": dict, "src": str} | dict.fromkeys(sizes, int))
    count, height, width, columns = (value[name] for name in sizes)
    try:
        data = base64.b64decode(value["src"].partition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise ValueError(f"a picture is no base64: {error}") from error
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
        sheet = np.asarray(picture.convert("RGB"))
    if min(count, height, width, columns) < 1 or sheet.shape != (-(-count // columns) * height, columns * width, 3):
        raise ValueError(f"a picture of {sheet.shape[1]}x{sheet.shape[0]} is no sheet of {count} frames")
    tiles = sheet.reshape(-1, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    return Pane(value["row"], tiles[:count], {str(k): float(v) for k, v in value["scores"].items()})
