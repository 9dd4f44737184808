"""An export as its reader needs it: the videos that the official scorer had to judge, and what made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidalign.bench.suites.folder import MANIFEST
from vidalign.errors import DataError, UsageError
from vidalign.reading import check_object, content_hash, read_json

SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class ExportedVideo:
    """One video of the manifest."""

    name: str
    """File name inside OUT/videos."""
    prompt: str
    index: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """A complete export."""

    folder: Path
    suite: str
    seeds: int
    videos: tuple[ExportedVideo, ...]
    about: dict[str, str]
    """`manifest_sha256`, `student_sha256`, and what the manifest says under `made_by`."""

    @property
    def prompts(self) -> dict[str, str]:
        """File name -> prompt."""
        return {video.name: video.prompt for video in self.videos}

    @property
    def run(self) -> Path | None:
        """The run whose student made the videos, where the manifest names it and it is still there."""
        place = self.about.get("run", "")
        run = (self.folder.resolve() / place).resolve()
        return run if place and (run / "recipe.yaml").is_file() else None


def open_export(folder: Path, suite: str) -> Exported:
    """The export of `suite` in a folder; `UsageError` when there is none, or it is not complete or another suite's."""
    file = folder / MANIFEST
    try:
        manifest = check_object(read_json(file), {"complete": bool, "settings": dict, "made_by": dict, "videos": list})
        settings = check_object(manifest["settings"], {"suite": str, "seeds": int, "student": dict})
        student = check_object(settings["student"], {"sha256": str})["sha256"]
        videos = tuple(_video(row) for row in manifest["videos"])
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is not an export of `vidalign bench export-videos`",
            where=str(file),
            why=(error.strerror or str(error)) if isinstance(error, OSError) else str(error),
            fix="give the folder that was its --out",
        ) from error
    if settings["suite"] != suite:
        raise UsageError(
            f"{folder} holds no videos of {suite}",
            where=str(file),
            why=f"it is of {settings['suite']!r}",
            fix="give that SUITE, or another --videos",
        )
    if not manifest["complete"]:
        raise UsageError(
            f"{folder} is not complete",
            where=str(file),
            why="scores of a part are not those of the suite",
            fix="start the same `export-videos` again, and the scorer after it",
        )
    made_by = {str(name): str(value) for name, value in manifest["made_by"].items()}
    about = {"manifest_sha256": content_hash(file), "student_sha256": student} | made_by
    return Exported(folder, suite, settings["seeds"], videos, about)


def _video(row: Any) -> ExportedVideo:
    row = check_object(row, {"file": str, "prompt": str, "index": int})
    return ExportedVideo(Path(row["file"]).name, row["prompt"], row["index"], tuple(row.get("tags", ())))


def check_scored(
    scored: Iterable[str], expected: Iterable[str], where: str, *, known: Iterable[str] = (), some: bool = False
) -> None:
    """`DataError` unless every expected video is scored exactly once and no other one.

    known: other videos of the export, which may not be scored here. some: expected videos may be missing.
    """
    counts, wanted, known = Counter(scored), set(expected), set(known)
    twice = sorted(name for name, count in counts.items() if count > 1)
    others = sorted(counts.keys() - wanted)
    strange = [name for name in others if name not in known]
    misplaced = [name for name in others if name in known]
    missing = [] if some else sorted(wanted - counts.keys())
    faults = [
        (missing, "not scored"),
        (twice, "scored twice"),
        (strange, "not of this export"),
        (misplaced, "not judged by this dimension"),
    ]
    wrong = [f"{len(names)} {what}: {_listed(names)}" for names, what in faults if names]
    if wrong or not counts:
        raise DataError(
            "the scores are not those of the export's videos",
            where=where,
            why="; ".join(wrong) or "it scores no video",
            fix="run the scorer on the whole export, and give its own result files",
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
