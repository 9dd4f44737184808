"""Clips or answers of a run's student for prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidalign.build import LANGUAGE
from vidalign.data.examples import Example
from vidalign.errors import DataError, UsageError, before_work
from vidalign.reading import regular
from vidalign.students.video.evaluation import check_frames
from vidalign.tracking.clips import write_clip
from vidalign.workflows.opened import FINAL, open_run
from vidalign.workflows.saved import Saved


def sample_run(
    folder: str | Path,
    prompts: Sequence[str],
    out: Path,
    *,
    frames: int | None = None,
    seed: int = 0,
    images: Sequence[Path] = (),
    saved: Saved = FINAL,
) -> list[Path]:
    """Write a clip of every prompt with a run's student; several prompts get numbered files.

    A language student answers every prompt, shown all `images`, into one text file.

    The text encoder warns about words that it does not know. Raises `UserError` for an impossible length.
    """
    run = open_run(folder, saved=saved, student_only=True)
    student = run.student.eval()
    if run.recipe.student.name == LANGUAGE:
        return [_write_answers(student, prompts, out, seed, images)]
    _check_clip_name(out)
    frames = run.recipe.data.frames if frames is None else frames
    with before_work():
        check_frames(student, frames)
    clips = student.sample(prompts, frames=frames, seed=seed)
    targets = [out] if len(prompts) == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(len(prompts))]
    return [write_clip(target, clip) for target, clip in zip(targets, clips, strict=True)]


def _check_clip_name(out: Path) -> None:
    """The file's name says a format that clips are written in."""
    if out.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(
            f"unknown clip format '{out.suffix or out.name}'",
            where="--out",
            why="clips are written as animated GIF or as MP4",
            fix="end the file name in .gif or .mp4",
        )


def _write_answers(student: Any, prompts: Sequence[str], out: Path, seed: int, images: Sequence[Path]) -> Path:
    """Prompt and response of every prompt in one text file."""
    from PIL import Image

    try:
        pictures = tuple(Image.open(regular(path)).convert("RGB") for path in images)
    except OSError as error:
        raise DataError("a picture cannot be read", where="--image", why=str(error)) from error
    examples = [Example(prompt, images=pictures) for prompt in prompts]
    texts = student.sample(examples, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    regular(out).write_text("".join(f"{p}\n-> {t}\n" for p, t in zip(prompts, texts, strict=True)), encoding="utf-8")
    return out
