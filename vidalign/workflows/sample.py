"""Clips or answers of a run's student for prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vidalign.build import student_kind
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
    """Write what a run's student makes of every prompt, see `StudentKind.write_samples`; returns the files.

    A student of clips writes one a prompt; a language student answers every prompt, shown all `images`, into one text
    file. The text encoder warns about words outside its vocabulary. Raises `UserError` for an impossible length.
    """
    run = open_run(folder, saved=saved, student_only=True)
    length = run.recipe.data.frames if frames is None else frames
    kind, student = student_kind(run.recipe), run.student.eval()
    return kind.write_samples(student, prompts, out, frames=length, seed=seed, images=images)
